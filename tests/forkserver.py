"""Python processes that need not import torch and transformers, which takes seconds: forks of one that has done so.

Each fork is a process of its own: current folder, environment, streams and exit status are as in a fresh one, and our
own package has not been imported. Tests that are about imports, signals or threads start a fresh Python.
"""

import atexit
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from pathlib import Path

PRELOADED = (
    "torch", "torch.distributed", "torch.optim", "transformers", "transformers.generation.utils",
    "transformers.image_processing_backends", "transformers.modeling_layers",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.image_processing_auto",
    "transformers.pipelines", "safetensors.torch", "numpy", "PIL.Image", "PIL.PngImagePlugin", "pydantic",
    "rich.progress", "rich.table", "typer", "jaxtyping", "filelock", "yaml", "matplotlib.figure",
    "sklearn.cluster", "sklearn.datasets", "sklearn.linear_model", "pyarrow", "datasets", "peft",
)  # fmt: skip


class Forkserver:
    """Runs Python code in forks of one process that has imported large libraries."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, words, cwd=None, env=None):
        """Run what `python *words` would run: `-c CODE ...` or `-m MODULE ...`.

        Args:
            words: as for python.
            cwd: the current folder.
            env: all environment variables; None is ours.
        """
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "stdout"), Path(folder, "stderr")
            request = {
                "words": [str(word) for word in words],
                "cwd": str(cwd or Path.cwd()),
                "env": dict(os.environ if env is None else env),
                "out": str(out),
                "err": str(err),
            }
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
            assert answer, "the fork server has ended"
            return subprocess.CompletedProcess(
                words, json.loads(answer), out.read_text(errors="replace"), err.read_text(errors="replace")
            )

    def close(self):
        """End the server."""
        self._process.communicate("")


def serve():
    """Answer requests, a line of JSON each, with the exit status of a fork."""
    for name in PRELOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            os.setsid()
            _child(request)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(json.dumps(status) + "\n")
        sys.stdout.flush()


def _child(request):
    """Be the process that was asked for; never returns."""
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["out"], os.O_WRONLY | os.O_CREAT),
        (2, request["err"], os.O_WRONLY | os.O_CREAT),
    ):
        os.dup2(os.open(path, flags), number)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    kind, target, *rest = request["words"]
    status = 0
    try:
        if kind == "-c":
            sys.argv = ["-c", *rest]
            sys.path[0] = ""
            sys.modules["__main__"] = main = types.ModuleType("__main__")
            exec(compile(target, "<string>", "exec"), vars(main))
        else:
            sys.argv = [target, *rest]
            runpy.run_module(target, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:  # noqa: BLE001 - whatever it is, as Python shows it
        traceback.print_exc()
        status = 1
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
