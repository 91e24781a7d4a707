"""Every command and every Python block of README and docs is run, so that none of them can rot.

A block opens with ```bash or ```python; ```bash slow takes minutes and runs with `-m slow`. Commands run in an empty
folder that holds the repository's `examples`, and a user's `photos`. `make` targets are what CI itself runs; here they
must exist.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
BLOCK = re.compile(r"^```(bash|python)( slow)?\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language):
    for page in PAGES:
        for number, match in enumerate(BLOCK.finditer(page.read_text()), start=1):
            if match[1] == language:
                name = f"{page.relative_to(ROOT)}:{number}"
                yield pytest.param(match[3], id=name, marks=[pytest.mark.slow] if match[2] else [])


@pytest.fixture
def workplace(tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    take_photos(tmp_path / "photos")
    return tmp_path


def take_photos(folder):
    """200 files as people have them: JPEG and PNG, some grey, some see-through, one broken, one gigantic."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(198):
        height, width = random.integers(20, 60, 2)
        down, across = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
        first, second, third = random.integers(0, 256, (3, 3))
        photo = Image.fromarray(
            (first + (second - first) * down * (1 - across) + (third - first) * across * down).astype(np.uint8)
        )
        ImageDraw.Draw(photo).ellipse((5, 5, width - 8, height - 8), fill=tuple(map(int, second)))
        photo = photo.convert(("RGB", "RGB", "L", "RGBA")[index % 4])
        photo.save(folder / f"{index}.{'png' if index % 4 == 3 or index % 3 == 0 else 'jpg'}")
    whole = (folder / "0.png").read_bytes()
    (folder / "broken.png").write_bytes(whole[: len(whole) // 2])
    Image.new("1", (20_000, 10_000)).save(folder / "huge.png")


def run(command, cwd):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euc", command],
        cwd=cwd,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("block", list(blocks("bash")))
@pytest.mark.timeout(1800)  # a machine may be twice as slow as ours
def test_commands_run(block, workplace):
    targets = re.findall(r"^([\w./-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in filter(None, (line.split("#")[0].strip() for line in block.replace("\\\n", " ").splitlines())):
        words = shlex.split(line)
        if words[0] == "make":
            assert words[1] in targets, f"there is no target {words[1]}"
        elif words[0] == "python" and words[1].startswith("benchmarks/"):
            assert (ROOT / words[1]).is_file(), line  # benchmarks are run by `make bench`
        elif words[0] == "git":
            assert words[1] == "clone", line
        elif words[0] != "cd":
            assert words[0] in ("imagegpt", "python", "torchrun", "export"), f"who runs {words[0]}?"
            done = run(line, workplace)
            assert done.returncode == 0, f"{line}\n{done.stderr}"


@pytest.mark.parametrize("block", list(blocks("python")))
def test_python_runs(block, workplace):
    done = subprocess.run([sys.executable, "-c", block], cwd=workplace, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_changelog_decisions_and_log_are_kept():
    assert "## Unreleased" in (ROOT / "CHANGELOG.md").read_text()
    listed = re.findall(r"\((\d{4}-[\w-]+\.md)\)", (ROOT / "docs/decisions/README.md").read_text())
    assert listed == sorted(path.name for path in (ROOT / "docs/decisions").glob("0*.md"))
