"""`imagegpt env`: describe the machine for a bug report."""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagegpt.cli import _console, _options
from imagegpt.common.memory import available_memory, format_bytes
from imagegpt.files.paths import cache_folder

# Environment variables that change how imagegpt and its libraries behave.
_VARIABLES = re.compile(
    r"(OMP|GOMP|KMP|MKL|HF|TORCH|CUDA|NVIDIA|PYTORCH|NCCL|XDG_CACHE)_\w+|CXX|COLUMNS|TERM|NO_COLOR|LANG|LC_\w+|PYTHON\w+"
)
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD")


def env(as_json: _options.JsonOption = False) -> None:
    """Describe this machine for a bug report: versions, hardware, compiler, folders and settings."""
    environment = _detect()
    if as_json:
        _console.print_json(environment)
    else:
        _console.print_key_values(_describe(environment))


def _detect() -> dict[str, Any]:
    """What can change how imagegpt behaves on this machine; None for what is missing or unknown."""
    import torch

    from imagegpt import __version__

    cache = cache_folder()
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    return {
        "imagegpt": __version__,
        "package_folder": str(Path(__file__).parents[1]),
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "libc": " ".join(platform.libc_ver()).strip(),  # empty unless it is glibc
        "cores": os.cpu_count(),  # logical
        "available_memory_bytes": available_memory(),
        "compiler": next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++"))), None),
        "cache_folder": str(cache),
        "cache_is_writable": os.access(existing, os.W_OK),
        "output_encoding": sys.stdout.encoding,
        "output_is_terminal": sys.stdout.isatty(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,  # that torch was built with
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "libraries": _libraries(),
        "variables": {
            name: "set" if _SECRET.search(name) else value
            for name, value in sorted(os.environ.items())
            if _VARIABLES.fullmatch(name)
        },
    }


def _libraries() -> dict[str, str | None]:
    """Versions of the dependencies, except torch and those needed only for development."""
    lines = [line for line in importlib.metadata.requires("imagegpt") or () if "dev" not in line.partition(";")[2]]
    versions: dict[str, str | None] = {}
    for name in sorted({re.split(r"[^\w.-]", line)[0] for line in lines} - {"torch"}):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _describe(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    memory = facts["available_memory_bytes"]
    free = "memory unknown" if memory is None else f"{format_bytes(memory)} of memory free"
    yield "imagegpt", f"{facts['imagegpt']}, in {facts['package_folder']}"
    yield "Python", f"{facts['python']}, {facts['executable']}"
    yield "system", f"{facts['platform']}, {facts['libc'] or 'no glibc'}"
    yield "cores", f"{facts['cores']}, {free}"
    yield "compiler", facts["compiler"] or "none: sampling and training run without kernels"
    yield "cache", f"{facts['cache_folder']}{'' if facts['cache_is_writable'] else ', not writable'}"
    yield "output", f"{facts['output_encoding']}, {'a terminal' if facts['output_is_terminal'] else 'not a terminal'}"
    yield "torch", f"{facts['torch']}, CUDA {facts['cuda'] or 'not built in'}, {facts['threads']} threads"
    yield from ((f"cuda:{index}", name) for index, name in enumerate(facts["gpus"]))
    yield from ((name, version or "not installed") for name, version in facts["libraries"].items())
    yield from facts["variables"].items()
