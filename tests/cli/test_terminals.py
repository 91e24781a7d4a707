"""Narrow terminals, terminals of other encodings, and Ctrl-C while libraries are imported."""

import os
import re
import subprocess
import sys

import pytest

ENCODINGS = ["ascii", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cp850", "latin-1", "koi8-r"))]

RUNNING = """
import io, os, sys
from imagegpt.cli import main
for words in (["--help"], ["models"], ["info", "digits"], ["inspect", "digits"], ["sample", "--help"], ["cache"],
              ["train", "--help"], ["nosuch…"], ["info", "[/x] 茶"], ["info", "ol\\udce9"], ["env"]):
    try:
        main(words)
    except SystemExit as ended:
        print("status", ended.code)
"""


def start(*words, **variables):
    """A process of the command line, on a terminal as described by environment variables."""
    settings = {**os.environ, "TERM": "xterm", **variables}
    return subprocess.run([sys.executable, *words], env=settings, capture_output=True)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_sixty_columns_in_a_small_encoding(encoding):
    done = start("-c", RUNNING, COLUMNS="60", PYTHONIOENCODING=encoding, _TYPER_FORCE_DISABLE_TERMINAL="1")
    out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert done.returncode == 0, err
    assert re.findall(r"^status (\d+)", out, re.MULTILINE) == [*"00000002220"], out + err
    assert err.count("\n") == 3
    assert "Traceback" not in err
    assert "openai/imagegpt-medium" in out
    assert "lm_head.weight" in out
    assert r"ol\xe9 is not valid UTF-8" in err


def test_help_and_models_are_sixty_columns_wide():
    for words in (["--help"], ["models"], ["sample", "--help"]):
        out = start("-m", "imagegpt", *words, COLUMNS="60", PYTHONIOENCODING="ascii").stdout.decode("ascii")
        assert max(map(len, out.splitlines())) <= 60


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
@pytest.mark.parametrize("module", ["typer", "rich.console", "torch.nn", "transformers", "imagegpt.pipeline.pipeline"])
def test_interruption_while_importing(tmp_path, module):
    """Ctrl-C comes when a module is asked for, be it the command line's own, ours or another's."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    settings = {**os.environ, "PYTHONPATH": str(tmp_path)}
    words = [sys.executable, "-m", "imagegpt", "sample", "--num", "1", "--out", str(tmp_path / "x.png")]
    done = subprocess.run(words, env=settings, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: stopped\n")


def test_a_library_that_turns_ctrl_c_into_its_own_error(tmp_path):
    """numpy, for one, says then that its installation is broken."""
    code = (
        "import os, signal, sys\n"
        "from imagegpt.cli import app\n"
        "def broken():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        while True: pass\n"
        "    except KeyboardInterrupt:\n"
        "        raise ImportError('numpy is broken')\n"
        "for command in app.app.registered_commands:\n"
        "    if command.callback.__name__ == 'models':\n"
        "        command.callback, command.name = broken, 'models'\n"
        "sys.argv = ['imagegpt', 'models']\n"
        "app.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "error: stopped\n")


@pytest.mark.parametrize("words", [["models"], ["--version"]])
def test_the_reader_of_a_pipe_may_leave(words):
    """As in `imagegpt models | head -1`."""
    read, write = os.pipe()
    os.close(read)
    settings = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "imagegpt", *words]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=settings)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
