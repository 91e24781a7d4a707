"""pyproject.toml, the Makefile and the workflow agree."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "lowest_versions.py"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def lowest(pyproject):
    done = subprocess.run([sys.executable, SCRIPT, pyproject], capture_output=True, text=True, check=False)
    return done.stdout, done.stderr


def pins():
    out, error = lowest(ROOT / "pyproject.toml")
    assert not error
    return dict(line.split("==") for line in out.splitlines())


def declared():
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return [Requirement(line) for requirements in lists for line in requirements]


def test_every_requirement_is_pinned_to_its_lower_bound():
    found = pins()
    assert set(found) == {requirement.name for requirement in declared()} - {"torch"}
    for requirement in declared():
        if requirement.name != "torch":
            assert requirement.specifier.contains(found[requirement.name])
            assert f">={found[requirement.name]}" in str(requirement.specifier).split(",")


def test_the_dev_extra_includes_every_other_extra_but_ray():
    """Ray takes 240 MB; its tests are skipped without it (decision 23)."""
    extras = PROJECT["optional-dependencies"]
    for name, requirements in ((name, extras[name]) for name in extras if name != "ray"):
        assert set(requirements) <= set(extras["dev"]), f"dev lacks something of {name}: make lowest would not test it"


def test_lower_bounds_that_are_missing_or_contradict_are_refused(tmp_path):
    path = tmp_path / "pyproject.toml"
    path.write_text('[project]\ndependencies = ["numpy"]\n[project.optional-dependencies]\n')
    assert "ValueError: 'numpy' in dependencies has no lower bound: write it as name>=version" in lowest(path)[1]
    path.write_text('[project]\ndependencies = ["a>=1"]\n[project.optional-dependencies]\ndev = ["a>=2", "b>=1"]\n')
    assert "ValueError: a is >=2 in dev and >=1 elsewhere: declare one bound" in lowest(path)[1]
    path.write_text('[project]\ndependencies = ["torch>=2,<3", "a[x]>=1,<2"]\n[project.optional-dependencies]\n')
    assert lowest(path) == ("a==1\n", "")


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("rich", "14.3"),  # typer 0.29 asks for 13.8, which writes an empty line where no terminal is
        ("safetensors", "0.8"),  # transformers 5.17 does
        ("numpy", "2"),  # pyarrow, which datasets stands on, does
        ("pytest-timeout", "2.3.1"),  # there is no 2.3.0
        ("pytest-xdist", "3.6.1"),  # 3.6.0 was withdrawn
        ("matplotlib", "3.10.7"),  # before, it calls what pyparsing has deprecated
        ("accelerate", "1.14"),  # before, it splits blocks that transformers 5 names in a set
        ("peft", "0.21"),  # before, it warns when it saves an adapter of a model without a name
        ("beartype", "0.20.1"),  # 0.20.0 fails on an array where an Iterable is declared
    ],
)
def test_lower_bounds_exclude_versions_that_fail(name, least):
    """What `make lowest` cannot install, or fails with, is no bound; these were declared lower."""
    assert Version(pins()[name]) >= Version(least)


def test_pillow_has_no_known_vulnerabilities():
    """Before 13.0 a JPEG file could overflow the heap (CVE-2026-112403); the decision page names the advisories."""
    assert Version(pins()["pillow"]) >= Version("13")
    assert "CVE-2026-112403" in (ROOT / "docs" / "decisions" / "0001-dependencies.md").read_text()


def make(*arguments):
    done = subprocess.run(["make", "-C", ROOT, "-n", *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text())


def test_the_workflow_runs_targets_that_exist():
    commands = [step["run"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "run" in step]
    assert commands == ["make check", "make lowest"]
    for command in commands:
        code, output = make(command.split()[1])
        assert code == 0, output
        assert "pytest" in output
    assert make("nothing")[0] != 0


def test_the_workflow_tests_every_declared_python():
    classifiers = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert WORKFLOW["jobs"]["check"]["strategy"]["matrix"]["python-version"] == classifiers
    assert f">={classifiers[0]}" == PROJECT["requires-python"]
    (setup,) = [step for step in WORKFLOW["jobs"]["lowest"]["steps"] if "setup-python" in step.get("uses", "")]
    assert setup["with"]["python-version"] == classifiers[0]


def test_make_lowest_installs_the_constraints():
    code, output = make("lowest", "LOWEST=somewhere-else")
    assert code == 0, output
    assert "scripts/lowest_versions.py > somewhere-else/lowest.txt" in output
    assert "pip install --disable-pip-version-check -e '.[dev]' --constraint somewhere-else/lowest.txt" in output


def test_contributing_mentions_make_lowest():
    assert "`make lowest`" in (ROOT / "CONTRIBUTING.md").read_text()
