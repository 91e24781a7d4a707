"""The commands and Python blocks of README and docs, and a place to run them in."""

import glob
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
COMMANDS = ("imagegpt", "python", "torchrun", "export")


def blocks(language, pages=PAGES):
    """The blocks of pages as parameters of a test; the slow ones are marked so."""
    for page in pages:
        for number, match in enumerate(BLOCK.finditer(page.read_text()), start=1):
            if match[1] == language:
                name = f"{page.relative_to(ROOT)}:{number}"
                yield pytest.param(match[3], id=name, marks=[pytest.mark.slow] if match[2] else [])


def lines(block):
    """The commands of a block of bash, without comments, continued lines joined."""
    return list(filter(None, (line.split("#")[0].strip() for line in block.replace("\\\n", " ").splitlines())))


def is_for_a_checkout(line):
    """Whether a command is about the repository itself, not the installed package."""
    words = shlex.split(line)
    return words[0] in ("make", "git", "cd") or (words[0] == "python" and words[1].startswith("benchmarks/"))


def run(command, cwd, executables=Path(sys.executable).parent, **environment):
    """Run a line of bash; the commands are those of a virtual environment, by default ours."""
    path = f"{executables}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euc", command],
        cwd=cwd,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "2", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def run_forked(forkserver, line, cwd):
    """Run a line of bash as `run` does, but `imagegpt ...` without waiting for imports."""
    words = shlex.split(line)
    if words[0] != "imagegpt" or any(sign in line for sign in ("|", ">", "&", "$", "~", ";")):
        return run(line, cwd)
    found = [sorted(glob.glob(word, root_dir=cwd)) if "*" in word else [] for word in words]  # noqa: PTH207 - of words
    words = [path for word, paths in zip(words, found, strict=True) for path in paths or [word]]
    return forkserver.run(["-m", *words], cwd, {**os.environ, "OMP_NUM_THREADS": "2"})


def check(done, line):
    """See that a command did its work: it ends with 0, or, if it skipped some of the broken photos, with 1."""
    expected = 1 if "skipped: see " in done.stderr else 0
    assert done.returncode == expected, f"{line}\n{done.stderr}"


def lay_out(folder):
    """What the blocks expect where they run: the repository's `examples`, and a user's `photos`."""
    shutil.copytree(ROOT / "examples", folder / "examples")
    take_photos(folder / "photos")


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
