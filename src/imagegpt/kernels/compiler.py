"""Compiling C++ libraries with the machine's own compiler, once, and finding them again.

A library is kept in the user's cache folder beside the SHA-256 of its contents. What was damaged is compiled again;
what somebody else could have written is never loaded.
"""

import hashlib
import os
import platform
import secrets
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from imagegpt.files.paths import cache_folder
from imagegpt.kernels.cpu import processor

_SOURCES = Path(__file__).with_name("cpp")
_FLAGS = ("-O3", "-std=gnu++17", "-ffp-contract=fast", "-shared", "-fPIC")
_TIMEOUT_S = 300
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, kw_only=True)
class Library:
    """A shared library: the C++ file of its name in the folder cpp, and numbers for the preprocessor."""

    name: str
    defines: tuple[tuple[str, int], ...] = ()


def find_or_build(library: Library, folder: Path | None = None) -> Path:
    """A library's file, compiled if it is not there yet, which takes some seconds.

    Args:
        library: which.
        folder: where it is kept; None is the folder kernels in `files.cache_folder()`.
    Raises: OSError or RuntimeError if it cannot be compiled; PermissionError if others may write there.
    """
    folder = cache_folder() / "kernels" if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{library.name}-{_key(library)}.so"
    _check_owner(folder)
    if _is_whole(path):
        return path
    with FileLock(path.with_suffix(".lock")):  # of several processes one compiles, the others wait
        if not _is_whole(path):
            _build(library, path)
    return path


def _is_whole(path: Path) -> bool:
    """Whether a library is there as it was written."""
    try:
        _check_owner(path)
        return path.with_suffix(".sha256").read_text() == hashlib.sha256(path.read_bytes()).hexdigest()
    except (FileNotFoundError, UnicodeDecodeError):
        return False


def _check_owner(path: Path) -> None:
    """See that nobody but this user and root may have written here, as ssh does for its keys."""
    if not hasattr(os, "getuid"):
        return
    found = path.stat()
    if found.st_uid not in (0, os.getuid()) or found.st_mode & _OTHERS_MAY_WRITE:
        raise PermissionError(
            f"{path} belongs to somebody else or may be written by others, so that what it holds is not run: "
            "make it yours (chmod go-w), or set XDG_CACHE_HOME to another folder"
        )


def _build(library: Library, path: Path) -> None:
    """Compile into a file, which is there whole or not at all; its checksum comes last."""
    temporary = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.tmp.so")
    source = _SOURCES / f"{library.name}.cpp"
    command = [_compiler(), *_flags(library), str(source), "-o", str(temporary)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr.strip()]
            raise RuntimeError(f"{command[0]} cannot compile the kernels ({lines[0] or f'status {done.returncode}'})")
        temporary.chmod(0o700)
        checksum = hashlib.sha256(temporary.read_bytes()).hexdigest()
        _sync(temporary)
        temporary.replace(path)
        temporary.write_text(checksum)
        _sync(temporary)
        temporary.replace(path.with_suffix(".sha256"))
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{command[0]} did not compile the kernels within {_TIMEOUT_S} s") from None
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file is on the disk, so that its name never stands for half of it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _compiler() -> str:
    """The C++ compiler of this machine.

    Raises: RuntimeError if there is none.
    """
    for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")):
        if found := shutil.which(name):
            return found
    raise RuntimeError("there is no C++ compiler: install one, g++ for example, or set CXX to it")


def _flags(library: Library) -> list[str]:
    # On arm64 -mcpu=native means the same, and Apple's clang knows that only.
    native = "-march=native" if platform.machine().lower() in ("x86_64", "amd64", "i686") else "-mcpu=native"
    return [native, *_FLAGS, *_openmp_flags(), *(f"-D{name}={value}" for name, value in library.defines)]


def _openmp_flags() -> list[str]:
    if sys.platform != "darwin":
        return ["-fopenmp"]
    import torch

    # Apple's clang comes without omp.h and libomp; torch's wheels bring both. Their libomp says it is at home in
    # /opt/llvm-openmp, where it is not: our libraries load because torch has loaded it, and macOS compares that name.
    place = Path(torch.__file__).parent
    places = [f"-I{place / 'include'}", f"-L{place / 'lib'}", f"-Wl,-rpath,{place / 'lib'}"]
    return ["-Xpreprocessor", "-fopenmp", *places, "-lomp"]


def _key(library: Library) -> str:
    """What a compiled library depends on."""
    facts = "\n".join([processor(), os.environ.get("CXX", ""), *_flags(library)])
    sources = [path.read_bytes() for path in sorted(_SOURCES.iterdir())]
    return hashlib.sha256(b"\n".join([facts.encode(), *sources])).hexdigest()[:24]
