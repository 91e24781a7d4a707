"""Print the lowest versions that pyproject.toml declares as constraints for pip, one `name==version` a line.

`make lowest` installs the package under these constraints: pip then either installs exactly the declared lower bounds,
or names the one that another requirement does not allow. torch is left out: its builds are large and depend on the
machine, and pip takes the newest one allowed.

    python scripts/lowest_versions.py [pyproject.toml]
"""

import re
import sys
import tomllib
from pathlib import Path

_LEFT_OUT = {"torch"}
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?>=(?P<version>[0-9][0-9A-Za-z.]*)(,<[0-9.]+)?")


def lowest_versions(pyproject: Path) -> dict[str, str]:
    """The declared lower bound of every direct dependency, those of the extras too.

    Returns: versions by package name, sorted by name, without torch.
    Raises: ValueError if a requirement has no lower bound, or two lists give different ones.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    lists = {"dependencies": project["dependencies"], **project["optional-dependencies"]}
    found: dict[str, str] = {}
    for where, requirements in lists.items():
        for requirement in requirements:
            match = _REQUIREMENT.fullmatch(requirement)
            if match is None:
                raise ValueError(f"{requirement!r} in {where} has no lower bound: write it as name>=version")
            name, version = match["name"], match["version"]
            if found.setdefault(name, version) != version:
                raise ValueError(f"{name} is >={version} in {where} and >={found[name]} elsewhere: declare one bound")
    return {name: version for name, version in sorted(found.items()) if name not in _LEFT_OUT}


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "pyproject.toml"
    sys.stdout.write("".join(f"{name}=={version}\n" for name, version in lowest_versions(path).items()))
