"""Users without a home or a name, as in containers, and caches that cannot be written to."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

NOBODY = 54321

# What this user may not read here, such as a Python in root's home, is read all the same; nothing more can be written.
BECOME_NOBODY = [
    "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=+dac_read_search",
    "--ambient-caps=+dac_read_search",
]  # fmt: skip


def can_become_nobody():
    return shutil.which("setpriv") is not None and subprocess.run([*BECOME_NOBODY, "true"]).returncode == 0


pytestmark = pytest.mark.skipif(not can_become_nobody(), reason="only root becomes somebody else, by setpriv")

COMMANDS = [
    ["models"],
    ["info", "digits"],
    ["env"],
    ["cache"],
    ["sample", "--num", "1", "--out", "x.png"],
    ["palette", "fit", "digits", "--split", "test", "--colors", "4", "--size", "4", "--out", "pal"],
]
ENCODING = ["encode", "digits", "ids", "--split", "test", "--palette", "pal", "--size", "4", "--workers", "1"]

RUNNING = """
import json, sys
from imagegpt.cli import main
if __name__ == "__main__":
    for words in json.loads(sys.argv[1]):
        try:
            main(words)
        except SystemExit as ended:
            print("status", ended.code, flush=True)
"""


@pytest.fixture
def place():
    """A folder that everybody may write to; pytest's own are the user's alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def call(place):
    """Run commands as somebody the system has no name for."""

    def start(commands, **variables):
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "HF_HUB_OFFLINE") if name in os.environ}
        settings = {**kept, "TMPDIR": str(place), "CXX": "/bin/false", "PYTHONDONTWRITEBYTECODE": "1", **variables}
        return subprocess.run(
            [*BECOME_NOBODY, sys.executable, "-c", RUNNING, json.dumps(commands)],
            cwd=place, env=settings, capture_output=True, text=True,
        )  # fmt: skip

    return start


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables",
    {
        "no home": {},
        "a home that is not there": pytest.param({"HOME": "/nonexistent"}, marks=pytest.mark.slow),
        "a cache that cannot be written to": pytest.param({"XDG_CACHE_HOME": "/proc"}, marks=pytest.mark.slow),
    }.values(),
    ids=str,
)
def test_everything_works(call, place, variables):
    commands = COMMANDS if variables else [*COMMANDS, ENCODING]
    done = call(commands, **variables)
    assert re.findall("^status (.*)", done.stdout, re.MULTILINE) == ["0"] * len(commands), done.stderr
    assert "Traceback" not in done.stderr
    assert "UserWarning" not in done.stderr, done.stderr
    assert not (place / "~").exists()


def test_a_tilde_without_a_home_is_one_sentence(call):
    done = call([["sample", "--num", "1", "--out", "~/x.png"]])
    assert done.stdout == "status 2\n"
    assert "~ has no home folder: give the full path instead" in done.stderr
    assert done.stderr.count("\n") == 1


LOADING = """
from imagegpt import ImageGPTModel
try:
    ImageGPTModel.from_pretrained("owner/other", local_files_only=True)
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_the_hub_without_a_home(call, place):
    done = call([["sample", "--model", "openai/imagegpt-small", "--num", "1", "--out", "x.png"]])
    assert done.stdout == "status 2\n", done.stderr
    assert "'openai/imagegpt-small' is not on this machine" in done.stderr
    kept = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", "TMPDIR": str(place)}
    done = subprocess.run(
        [*BECOME_NOBODY, sys.executable, "-c", LOADING], cwd=place, env=kept, capture_output=True, text=True
    )
    assert done.stdout.endswith("give cache_dir, or set HF_HOME\n"), done.stderr
