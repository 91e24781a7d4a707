"""`imagegpt env`: what a report of a bug should tell of the machine."""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from imagegpt.cli import _console
from imagegpt.common.memory import available_bytes, readable_bytes
from imagegpt.files.paths import cache_folder

# What changes how imagegpt and the libraries below it behave.
_VARIABLES = re.compile(
    r"(OMP|GOMP|KMP|MKL|HF|TORCH|CUDA|NVIDIA|PYTORCH|NCCL|XDG_CACHE)_\w+|CXX|COLUMNS|TERM|NO_COLOR|LANG|LC_\w+|PYTHON\w+"
)
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD")


def env() -> None:
    """Print what a report of a bug should tell: versions, machine, GPUs, compiler, folders and settings."""
    _console.print_facts([*_system(), *_compute(), *_versions(), *_settings()])


def _system() -> Iterator[tuple[str, str]]:
    from imagegpt import __version__

    yield "imagegpt", f"{__version__}, in {Path(__file__).parents[1]}"
    yield "Python", f"{platform.python_version()}, {sys.executable}"
    yield "system", f"{platform.platform()}, {' '.join(platform.libc_ver()).strip() or 'no glibc'}"
    memory = available_bytes()
    free = "memory unknown" if memory is None else f"{readable_bytes(memory)} of memory free"
    yield "cores", f"{os.cpu_count()}, {free}"
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++"))), None)
    yield "compiler", compiler or "none, so that sampling and training run without kernels"
    folder = cache_folder()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    yield "cache", f"{folder}{'' if os.access(there, os.W_OK) else ', which cannot be written to'}"
    yield "output", f"{sys.stdout.encoding}, {'a terminal' if sys.stdout.isatty() else 'no terminal'}"


def _compute() -> Iterator[tuple[str, str]]:
    import torch

    yield (
        "torch",
        f"{torch.__version__}, CUDA {torch.version.cuda or 'not built in'}, {torch.get_num_threads()} threads",
    )
    for index in range(torch.cuda.device_count()):
        yield f"cuda:{index}", torch.cuda.get_device_name(index)


def _versions() -> Iterator[tuple[str, str]]:
    """The libraries that imagegpt declares, for its tests excepted."""
    lines = [line for line in importlib.metadata.requires("imagegpt") or () if "dev" not in line.partition(";")[2]]
    for name in sorted({re.split(r"[^\w.-]", line)[0] for line in lines} - {"torch"}):
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "not installed"


def _settings() -> Iterator[tuple[str, str]]:
    for name, value in sorted(os.environ.items()):
        if _VARIABLES.fullmatch(name):
            yield name, "set" if _SECRET.search(name) else value
