"""Compiling kernels and caching the results."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from imagegpt.kernels import compiler
from imagegpt.kernels.compiler import Library, find_or_build
from imagegpt.kernels.step import DType, StepLibrary

ANSWER = Library(name="answer", defines=(("ANSWER", 42),))


@pytest.fixture
def sources(monkeypatch, tmp_path):
    """A source folder with a library that compiles quickly."""
    compiler.cpu_signature()  # cached: it may run a program the first time
    folder = tmp_path / "cpp"
    folder.mkdir()
    (folder / "answer.cpp").write_text('extern "C" int answer() { return ANSWER; }\n')
    monkeypatch.setattr(compiler, "_SOURCES", folder)
    return folder


@pytest.fixture
def compilations(monkeypatch, sources):
    """Record the paths of compiled libraries."""
    paths = []
    build = compiler._build
    monkeypatch.setattr(compiler, "_build", lambda library, path: paths.append(path) or build(library, path))
    return paths


def answer_of(path):
    copy = shutil.copy(path, path.with_suffix(".copy"))  # a loaded library is not read again
    return ctypes.CDLL(copy).answer()


def left_in(folder):
    return sorted(path.suffix for path in folder.iterdir() if path.suffix != ".lock")


def test_a_library_is_compiled_once_and_found_again(compilations, tmp_path):
    path = find_or_build(ANSWER, tmp_path / "kernels")
    assert answer_of(path) == 42
    assert find_or_build(ANSWER, tmp_path / "kernels") == path
    assert len(compilations) == 1
    assert path.parent.stat().st_mode & 0o777 == path.stat().st_mode & 0o777 == 0o700


def test_the_file_name_depends_on_everything_that_affects_the_code(compilations, sources, tmp_path, monkeypatch):
    def built():
        return find_or_build(ANSWER, tmp_path / "kernels")

    paths = [built(), find_or_build(Library(name="answer", defines=(("ANSWER", 43),)), tmp_path / "kernels")]
    assert [answer_of(path) for path in paths] == [42, 43]
    monkeypatch.setattr(compiler, "_FLAGS", (*compiler._FLAGS, "-O1"))
    paths.append(built())
    monkeypatch.setenv("CXX", compiler._compiler())
    paths.append(built())
    monkeypatch.setattr(compiler, "cpu_signature", lambda: "another")
    paths.append(built())
    (sources / "answer.h").write_text("// may be included\n")
    paths.append(built())
    assert len(set(paths)) == len(compilations) == 6
    assert built() == paths[-1]


PLATFORMS = {
    ("linux", "x86_64"): "-march=native",
    ("linux", "aarch64"): "-mcpu=native",
    ("darwin", "x86_64"): "-march=native",
    ("darwin", "arm64"): "-mcpu=native",
}


@pytest.mark.parametrize(("system", "machine"), PLATFORMS)
def test_the_compiler_command_of_each_platform(system, machine, sources, tmp_path, monkeypatch):
    """OpenMP's header and library come with Linux's compilers, and with torch for Apple's."""
    commands = []
    monkeypatch.setattr(compiler.sys, "platform", system)
    monkeypatch.setattr(compiler.platform, "machine", lambda: machine)
    monkeypatch.setattr(compiler.subprocess, "run", lambda command, **_: commands.append(command) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        find_or_build(ANSWER, tmp_path / "kernels")
    of_torch = Path(torch.__file__).parent
    openmp = {
        "linux": ["-fopenmp"],
        "darwin": [
            *["-Xpreprocessor", "-fopenmp", f"-I{of_torch}/include", f"-L{of_torch}/lib"],
            *[f"-Wl,-rpath,{of_torch}/lib", "-lomp"],
        ],
    }
    ((command, native, *flags, source, o, out),) = commands
    assert [command, native, source, o] == [
        compiler._compiler(),
        PLATFORMS[system, machine],
        f"{sources}/answer.cpp",
        "-o",
    ]
    assert flags == ["-O3", "-std=gnu++17", "-ffp-contract=fast", "-shared", "-fPIC", *openmp[system], "-DANSWER=42"]
    assert Path(out).parent == tmp_path / "kernels"
    if system == "darwin":  # the library finds libomp in the folder of torch
        before = compiler._key(ANSWER)
        monkeypatch.setattr(torch, "__file__", "/elsewhere/torch/__init__.py")
        assert compiler._key(ANSWER) != before


def flip(path, at=1000):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda library, checksum: library.write_bytes(library.read_bytes()[:-100]),
        lambda library, checksum: library.write_bytes(b""),
        lambda library, checksum: flip(library),
        lambda library, checksum: library.unlink(),
        lambda library, checksum: flip(checksum, 5),
        lambda library, checksum: checksum.write_bytes(b""),
        lambda library, checksum: checksum.write_bytes(b"\xff\xfe"),
        lambda library, checksum: checksum.unlink(),
    ],
    ids=["truncated", "empty", "bit", "gone", "checksum bit", "checksum empty", "checksum binary", "checksum gone"],
)
def test_a_damaged_library_is_compiled_again(damage, compilations, tmp_path):
    path = find_or_build(ANSWER, tmp_path / "kernels")
    whole = path.read_bytes()
    damage(path, path.with_suffix(".sha256"))
    assert find_or_build(ANSWER, tmp_path / "kernels") == path
    assert len(compilations) == 2
    assert answer_of(path) == 42
    assert path.read_bytes() == whole
    find_or_build(ANSWER, tmp_path / "kernels")
    assert len(compilations) == 2


@pytest.mark.parametrize("what", ["folder", "library"])
@pytest.mark.parametrize("mode", [0o720, 0o702])
def test_libraries_writable_by_others_are_refused(what, mode, compilations, tmp_path):
    path = find_or_build(ANSWER, tmp_path / "kernels")
    refused = path.parent if what == "folder" else path
    refused.chmod(mode)
    with pytest.raises(PermissionError) as error:
        find_or_build(ANSWER, tmp_path / "kernels")
    assert str(error.value) == (
        f"{refused} belongs to another user or is writable by others, so its code is not run: "
        "make it yours (chmod go-w), or set XDG_CACHE_HOME to another folder"
    )
    refused.chmod(0o755)  # others may read it
    assert find_or_build(ANSWER, tmp_path / "kernels") == path
    assert len(compilations) == 1


@pytest.mark.parametrize("what", ["folder", "library"])
def test_libraries_owned_by_others_are_refused(what, compilations, tmp_path, monkeypatch):
    path = find_or_build(ANSWER, tmp_path / "kernels")
    owners = {}
    stat = Path.stat

    def fake_stat(self, **options):
        status = stat(self, **options)
        return SimpleNamespace(st_uid=owners.get(self, status.st_uid), st_mode=status.st_mode)

    monkeypatch.setattr(Path, "stat", fake_stat)
    refused = path.parent if what == "folder" else path
    owners[refused] = os.getuid() + 1
    with pytest.raises(PermissionError, match="belongs to another user or is writable by others"):
        find_or_build(ANSWER, tmp_path / "kernels")
    owners[refused] = 0  # root can write anywhere anyway
    assert find_or_build(ANSWER, tmp_path / "kernels") == path
    assert len(compilations) == 1


def test_a_compiler_that_fails_leaves_nothing_behind(sources, tmp_path):
    (sources / "answer.cpp").write_text("#include <no_such_file.h>\n")
    with pytest.raises(RuntimeError, match=r"^\S+ cannot compile the kernels \(.*no_such_file.*\)$"):
        find_or_build(ANSWER, tmp_path / "kernels")
    assert left_in(tmp_path / "kernels") == []


@pytest.mark.parametrize(
    "end", [KeyboardInterrupt(), subprocess.TimeoutExpired("c++", 1), OSError("no memory")], ids=repr
)
def test_a_compiler_that_is_stopped_leaves_nothing_behind(end, sources, tmp_path, monkeypatch):
    def stopped(command, **_):
        Path(command[command.index("-o") + 1]).write_bytes(b"half")
        raise end

    with monkeypatch.context() as patch:
        patch.setattr(compiler.subprocess, "run", stopped)
        with pytest.raises(RuntimeError if isinstance(end, subprocess.TimeoutExpired) else type(end)):
            find_or_build(ANSWER, tmp_path / "kernels")
    assert left_in(tmp_path / "kernels") == []
    assert answer_of(find_or_build(ANSWER, tmp_path / "kernels")) == 42


def test_a_compiler_that_is_killed_leaves_nothing_behind(sources, tmp_path, monkeypatch):
    script = tmp_path / "killed"
    script.write_text('#!/bin/sh\nfor last; do :; done\necho half > "$last"\nkill -9 $$\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    with pytest.raises(RuntimeError, match="killed cannot compile the kernels"):
        find_or_build(ANSWER, tmp_path / "kernels")
    assert left_in(tmp_path / "kernels") == []


@pytest.mark.parametrize("places", [("absolute", "caches"), ("relative", ".cache")], ids=lambda pair: pair[0])
def test_the_default_folder_is_in_the_users_cache(places, sources, tmp_path, monkeypatch):
    """A relative XDG_CACHE_HOME is ignored: it would depend on the working directory."""
    given, expected = places
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches") if given == "absolute" else "caches")
    assert find_or_build(ANSWER).parent == tmp_path / expected / "imagegpt" / "kernels"


def test_of_two_processes_one_compiles_and_the_other_waits(sources, tmp_path):
    script, log = tmp_path / "slow", tmp_path / "log"
    script.write_text(f'#!/bin/sh\necho compiled >> "{log}"\nsleep 2\nexec "{compiler._compiler()}" "$@"\n')
    script.chmod(0o755)
    code = (
        "from pathlib import Path; from imagegpt.kernels import compiler as b; "
        f"b._SOURCES = Path({str(sources)!r}); "
        f"print(b.find_or_build(b.{ANSWER!r}, Path({str(tmp_path / 'kernels')!r})))"
    )
    environment = os.environ | {"CXX": str(script)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    paths = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(paths) == 1
    assert answer_of(Path(paths.pop())) == 42
    assert log.read_text() == "compiled\n"


def test_a_library_that_fails_to_load_is_not_deleted(sources, tmp_path):
    """Another process may be using it. Regression: two processes deleted each other's library."""
    (sources / "step.cpp").write_text('extern "C" { void missing(); void imagegpt_step() { missing(); } }\n')
    for _ in range(2):
        with pytest.raises(OSError, match="undefined symbol: missing"):
            StepLibrary(DType.FLOAT32, 16, tmp_path / "kernels")
        assert left_in(tmp_path / "kernels") == [".sha256", ".so"]


def test_a_missing_compiler_is_an_error(sources, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(
        RuntimeError, match=r"^there is no C\+\+ compiler: install one, g\+\+ for example, or set CXX to it$"
    ):
        find_or_build(ANSWER, tmp_path / "kernels")
    assert left_in(tmp_path / "kernels") == []
