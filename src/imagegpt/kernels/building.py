"""Compiling the kernels, once, and loading them."""

import contextlib
import hashlib
import os
import platform
import secrets
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from imagegpt.kernels import decoding, training
from imagegpt.kernels.machine import machine

Library = Literal["decoding", "training"]

_FOLDER = Path(__file__).with_name("cpp")
_FLAGS = ("-O3", "-std=gnu++17", "-ffp-contract=fast", "-shared", "-fPIC")
_TIMEOUT_S = 300
_REGISTER: dict[Library, Callable[[], None]] = {"decoding": decoding.register, "training": training.register}

_lock = threading.Lock()
_loaded: set[Library] = set()


def default_folder() -> Path:
    """Where what was compiled is kept: the user's cache folder, by torch's version."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "imagegpt" / f"compiled-torch-{torch.__version__}"


def is_loaded(library: Library) -> bool:
    """Whether the kernels of a library can be called."""
    return library in _loaded


def load(library: Library, folder: Path, *, build: bool) -> bool:
    """See that the kernels of a library can be called, in this process from now on.

    Args:
        library: which.
        folder: where they are kept.
        build: compile them if they are not there.
    Returns: whether they can.
    Raises: OSError or RuntimeError if they were to be compiled and cannot be.
    """
    with _lock:
        if library in _loaded:
            return True
        path = folder / f"{library}-{_key()}.so"
        if not os.path.isfile(path):  # noqa: PTH113 - it is silent where we may not look
            if not build:
                return False
            _build(library, path)
        try:
            torch.ops.load_library(path)
        except OSError:
            with contextlib.suppress(OSError):  # damaged; in a folder that we may only read, it stays
                path.unlink()
            if not build:
                return False
            _build(library, path)
            torch.ops.load_library(path)
        _REGISTER[library]()
        _loaded.add(library)
        return True


def _build(library: Library, path: Path) -> None:
    """Compile kernels into a file, which is there whole or not at all."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch.utils.cpp_extension import include_paths, library_paths

    compiler = get_cpp_compiler()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.tmp.so")
    native = "-march=native" if platform.machine().lower() in ("x86_64", "amd64", "i686") else "-mcpu=native"
    places = [*(f"-I{folder}" for folder in include_paths()), *(f"-L{folder}" for folder in library_paths())]
    source = _FOLDER / f"{library}.cpp"
    command = [compiler, native, *_FLAGS, "-fopenmp", *places, str(source), "-o", str(temporary)]
    try:
        done = subprocess.run(
            [*command, "-ltorch", "-ltorch_cpu", "-lc10"],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr.strip()]
            raise RuntimeError(f"{compiler} cannot compile the kernels ({lines[0]})")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _key() -> str:
    """What the compiled kernels depend on."""
    sources = [path.read_bytes() for path in sorted(_FOLDER.iterdir())]
    facts = [machine().encode(), repr(_FLAGS).encode(), *sources]
    return hashlib.sha256(b"\n".join(facts)).hexdigest()[:24]
