"""Compile C++ libraries with the machine's own compiler, and cache the results.

The cache is a folder of the user's, with the SHA-256 of each library beside it. A damaged library is compiled again;
one that another user could have written is never loaded.
"""

import functools
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

from imagegpt.files.atomic import fsync
from imagegpt.files.paths import cache_folder

_SOURCES = Path(__file__).with_name("cpp")
_FLAGS = ("-O3", "-std=gnu++17", "-ffp-contract=fast", "-shared", "-fPIC")
_TIMEOUT_S = 300
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, kw_only=True)
class Library:
    """A shared library: the source file `cpp/NAME.cpp` and its preprocessor definitions."""

    name: str
    defines: tuple[tuple[str, int], ...] = ()


def find_or_build(library: Library, folder: Path | None = None) -> Path:
    """Return the path of a compiled library; compile it first if it is not cached, which takes some seconds.

    Args:
        folder: the cache; None is `kernels` in `files.paths.cache_folder()`.
    Raises: OSError or RuntimeError if compiling fails; PermissionError if other users can write to the folder.
    """
    folder = cache_folder() / "kernels" if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{library.name}-{_key(library)}.so"
    _check_owner(folder)
    if _is_intact(path):
        return path
    with FileLock(path.with_suffix(".lock")):  # one of several processes compiles, the others wait
        if not _is_intact(path):
            _build(library, path)
    return path


def _is_intact(path: Path) -> bool:
    """Whether a library exists and matches its checksum."""
    try:
        _check_owner(path)
        return path.with_suffix(".sha256").read_text() == hashlib.sha256(path.read_bytes()).hexdigest()
    except (FileNotFoundError, UnicodeDecodeError):
        return False


def _check_owner(path: Path) -> None:
    """Check that only this user and root can have written here, as ssh does for its keys."""
    if not hasattr(os, "getuid"):
        return
    status = path.stat()
    if status.st_uid not in (0, os.getuid()) or status.st_mode & _WRITABLE_BY_OTHERS:
        raise PermissionError(
            f"{path} belongs to another user or is writable by others, so its code is not run: "
            "make it yours (chmod go-w), or set XDG_CACHE_HOME to another folder"
        )


def _build(library: Library, path: Path) -> None:
    """Compile a library and write it atomically, then its checksum."""
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
        fsync(temporary)  # before the rename, so that a crash never leaves an incomplete library
        temporary.replace(path)
        temporary.write_text(checksum)
        fsync(temporary)
        temporary.replace(path.with_suffix(".sha256"))
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{command[0]} did not compile the kernels within {_TIMEOUT_S} s") from None
    finally:
        temporary.unlink(missing_ok=True)


def _compiler() -> str:
    """Find a C++ compiler.

    Raises: RuntimeError if there is none.
    """
    for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")):
        if found := shutil.which(name):
            return found
    raise RuntimeError("there is no C++ compiler: install one, g++ for example, or set CXX to it")


def _flags(library: Library) -> list[str]:
    # On arm64 -mcpu=native does the same, and is all that Apple's clang accepts.
    native = "-march=native" if platform.machine().lower() in ("x86_64", "amd64", "i686") else "-mcpu=native"
    return [native, *_FLAGS, *_openmp_flags(), *(f"-D{name}={value}" for name, value in library.defines)]


def _openmp_flags() -> list[str]:
    if sys.platform != "darwin":
        return ["-fopenmp"]
    import torch

    # Apple's clang has neither omp.h nor libomp, but torch's wheels contain both. The install name of their libomp is
    # in /opt/llvm-openmp, which does not exist: our libraries load because torch has loaded a library of that name.
    folder = Path(torch.__file__).parent
    paths = [f"-I{folder / 'include'}", f"-L{folder / 'lib'}", f"-Wl,-rpath,{folder / 'lib'}"]
    return ["-Xpreprocessor", "-fopenmp", *paths, "-lomp"]


def _key(library: Library) -> str:
    """Hash everything that a compiled library depends on."""
    environment = "\n".join([cpu_signature(), os.environ.get("CXX", ""), *_flags(library)])
    sources = [path.read_bytes() for path in sorted(_SOURCES.iterdir())]
    return hashlib.sha256(b"\n".join([environment.encode(), *sources])).hexdigest()[:24]


@functools.cache
def cpu_signature() -> str:
    """A string that changes when code compiled here may not run: architecture, system, C library and CPU features."""
    flags = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), flags)
    except OSError:
        pass
    return f"{platform.machine()} {platform.system()} {' '.join(platform.libc_ver())} {flags}"
