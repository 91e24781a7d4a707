"""No module requires Unix: the package works on Windows, without kernels."""

import ast
from pathlib import Path

import pytest

import imagegpt

UNIX_MODULES = ("fcntl", "grp", "pwd", "resource", "termios", "tty", "pty", "syslog")
UNIX_FUNCTIONS = (
    "fork", "forkpty", "getuid", "geteuid", "getgid", "setsid", "killpg", "getpgid", "sched_getaffinity", "mkfifo",
    "fchmod", "fchown", "chown", "statvfs", "uname", "sysconf", "register_at_fork", "waitid",
)  # fmt: skip
UNIX_SIGNALS = ("SIGKILL", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGPIPE", "setitimer")

# Other packages are imported first: they have separate code for Windows, chosen by sys.platform.
IMPORTING = f"""
import importlib, os, pkgutil, signal, sys
import asyncio, multiprocessing.popen_spawn_posix, subprocess, tempfile
import accelerate, datasets, filelock, matplotlib.backends.backend_agg, peft, pydantic, rich.progress, safetensors.torch
import sklearn.cluster, torch, torch.distributed.checkpoint, torch.distributed.elastic.multiprocessing, transformers
import typer.rich_utils, yaml
for name in {UNIX_MODULES}:
    sys.modules[name] = None
for place, names in ((os, {UNIX_FUNCTIONS}), (signal, {UNIX_SIGNALS})):
    for name in names:
        if hasattr(place, name):
            delattr(place, name)
import imagegpt
for module in pkgutil.walk_packages(imagegpt.__path__, "imagegpt."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(len([name for name in sys.modules if name.startswith("imagegpt")]))
"""


def test_every_module_imports_without_unix_features(forkserver):
    done = forkserver.run(["-c", IMPORTING])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 80


SOURCES = sorted(Path(imagegpt.__path__[0]).rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(imagegpt.__path__[0])))
def test_unix_features_are_used_conditionally(path):
    """Where it is used there is a check that it is there, in the same file."""
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("os", "signal"):
            known = UNIX_FUNCTIONS if node.value.id == "os" else UNIX_SIGNALS
            checks = (f'hasattr({node.value.id}, "{node.attr}")', "AttributeError", 'os.name == "nt"')
            assert node.attr not in known or any(check in text for check in checks), f"line {node.lineno}: {node.attr}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            assert not set(names) & set(UNIX_MODULES) or "except ImportError" in text, f"line {node.lineno}: {names}"
