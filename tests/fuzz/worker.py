"""A forked child that opens damaged copies one after the other, under limits, and what it reports to its parent.

The child writes a line of JSON to a pipe at each stage of a case. What it does not survive, its parent sees by the line
that is missing and by how the child ended.
"""

import contextlib
import dataclasses
import faulthandler
import json
import math
import os
import resource
import shutil
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import imagegpt

from .cases import (
    ACCEPTED,
    CRASH,
    EXIT,
    FOREIGN,
    FUZZER,
    HANG,
    MEMORY,
    REFUSED,
    Kind,
    Mutant,
    Result,
    WrongEndError,
    random_of,
)  # fmt: skip

CPU_SECONDS = 10  # a case may take
WALL_SECONDS = 60  # on a machine that others use, too
MOST_GROWTH = 1 << 30  # bytes, of the memory that is used
MOST_ADDRESSES = 3 << 30  # bytes beyond those of the warm parent: so that the machine survives

OURS = (ValueError, OSError, ImportError)
_OTHERS = (
    "PIL", "httpx", "huggingface_hub", "json", "numpy", "pickle", "pyarrow", "pydantic_core", "requests", "safetensors",
    "safetensors_rust", "struct", "torch", "yaml", "zipfile",
)  # fmt: skip
_PACKAGE = Path(imagegpt.__file__).parent
_MOST_LETTERS = 2_000  # of a sentence


class Worker:
    """A child and the cases that it was given.

    Args:
        kind: of them.
        seed: of the run.
        numbers: of the cases.
        scratch: a folder for the copies.
    """

    def __init__(self, kind: Kind, seed: int, numbers: list[int], scratch: Path) -> None:
        self.kind, self._left = kind, list(numbers)
        self._mutant: Mutant | None = None
        self._parsed = False
        self._buffer = b""
        self._said_goodbye = False
        self._since = time.monotonic()
        self._was_late = False
        self.fd, out = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking where there are threads
            self._pid = os.fork()
        if not self._pid:
            os.close(self.fd)
            _run(kind, seed, numbers, scratch, out)
        os.close(out)

    def read(self) -> tuple[list[Result], bool]:
        """What has become known since, and whether the child has ended."""
        piece = os.read(self.fd, 1 << 16)
        *lines, self._buffer = (self._buffer + piece).split(b"\n")
        results = [result for line in lines if (result := self._told(json.loads(line))) is not None]
        return results, not piece

    def stop_if_late(self) -> None:
        """Kill the child if a case takes too long; `read` then finds it ended."""
        if time.monotonic() - self._since > WALL_SECONDS and not self._was_late:
            self._was_late = True
            os.kill(self._pid, signal.SIGKILL)

    def finish(self) -> tuple[Result | None, list[int]]:
        """What became of the case that the child did not survive, if there is one, and the cases that are left."""
        os.close(self.fd)
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        if not self._left or self._said_goodbye:
            return None, self._left
        is_hang = self._was_late or code == -signal.SIGXCPU
        told = (
            f"more than {CPU_SECONDS} s"
            if is_hang
            else f"ended with {signal.Signals(-code).name if code < 0 else code}"
        )
        number, *left = self._left
        outcome = HANG if is_hang else CRASH
        return Result(number=number, mutant=self._mutant, parsed=self._parsed, outcome=outcome, told=told), left

    def _told(self, line: dict[str, Any]) -> Result | None:
        self._since = time.monotonic()
        if "mutant" in line:
            self._mutant, self._parsed = Mutant(**line["mutant"]), False
        elif "parsed" in line:
            self._parsed = line["parsed"]
        elif "goodbye" in line:
            self._said_goodbye = True
        else:
            number, mutant = self._left.pop(0), self._mutant
            self._mutant = None
            return Result(number=number, mutant=mutant, parsed=self._parsed, **line["result"])
        return None


def _run(kind: Kind, seed: int, numbers: list[int], scratch: Path, out: int) -> NoReturn:
    """The child: all cases, up to the first that fails."""
    try:
        with os.fdopen(out, "w", buffering=1) as pipe:
            scratch.mkdir(parents=True)
            os.chdir(scratch)
            isolate(scratch)
            for number in numbers:
                if not _run_case(kind, seed, number, scratch / str(number), pipe):
                    break
            pipe.write('{"goodbye": true}\n')
    except Exception:  # noqa: BLE001 - the parent sees that there is no goodbye
        traceback.print_exc()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os._exit(0)


def isolate(scratch: Path) -> None:
    """Set the limits of this process; whatever it prints goes into files, and it finds no network."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    faulthandler.disable()  # pytest's, which would write into its terminal
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (addresses + MOST_ADDRESSES,) * 2)
    sys.stdout.flush()
    sys.stderr.flush()
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(scratch / f"std{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - pytest's may be in the way
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    warnings.simplefilter("ignore")
    socket.socket.connect = _refuse  # pyright: ignore[reportAttributeAccessIssue]
    time.sleep = partial(_sleep_briefly, time.sleep)  # between the attempts to fetch something


def limit_time() -> None:
    """Have the system end this process after so many seconds more of its processor."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used) + CPU_SECONDS, hard))


def _sleep_briefly(sleep: Callable[[float], None], seconds: float) -> None:
    sleep(min(seconds, 0.01))


def _refuse(*_: Any) -> NoReturn:
    raise ConnectionRefusedError(111, "the fuzzer has no network")


def _run_case(kind: Kind, seed: int, number: int, place: Path, pipe: Any) -> bool:
    """Mutate, parse and open; whether the child may go on."""

    def tell(**line: Any) -> None:
        pipe.write(json.dumps(line) + "\n")

    limit_time()
    try:
        mutant = kind.mutate(place, random_of(seed, kind.name, number))
        tell(mutant=dataclasses.asdict(mutant))
    except Exception:  # noqa: BLE001 - it is reported as what it is
        tell(result={"outcome": FUZZER, "told": traceback.format_exc()})
        return False
    with contextlib.suppress(Exception):  # a parser that raises does not take it
        tell(parsed=kind.passes_first_parser(place))
    before = _most_memory()
    outcome, told = opened(kind, place)
    growth = _most_memory() - before
    if growth > MOST_GROWTH:
        outcome, told = MEMORY, f"{growth:,} bytes more; {outcome}: {told}"
    if kind.parsed_while_open is not None:
        tell(parsed=kind.parsed_while_open)
    tell(result={"outcome": outcome, "told": told})
    shutil.rmtree(place, ignore_errors=True)
    return outcome in (ACCEPTED, REFUSED)


def opened(kind: Kind, place: Path) -> tuple[str, str]:
    """Open a case; its outcome, and what there is to tell of it."""
    try:
        return ACCEPTED, kind.open(place)
    except WrongEndError as error:
        return EXIT, str(error)
    except MemoryError:
        return MEMORY, traceback.format_exc()
    except Exception as error:  # noqa: BLE001 - the fuzzer looks at what it is
        if is_ours(error):
            return REFUSED, f"{type(error).__name__}: {error}"
        return FOREIGN, traceback.format_exc()


def is_ours(error: Exception) -> bool:
    """Whether an error is one that we raise for a user: of an ordinary type, a sentence in one line, and our own.

    The system's errors, which name the file, need not be raised by us.
    """
    if not isinstance(error, OURS) or type(error).__module__.partition(".")[0] in _OTHERS:
        return False
    if isinstance(error, UnicodeError):
        return False
    raised_in = [frame.filename for frame in traceback.extract_tb(error.__traceback__)][-1:]
    if not (isinstance(error, OSError) and error.strerror) and not any(_is_our_file(name) for name in raised_in):
        return False
    text = str(error)
    return bool(text) and "\n" not in text and len(text) <= _MOST_LETTERS


def _is_our_file(name: str) -> bool:
    """Whether code is of the package or of the fuzzer, which passes the sentences of commands on."""
    return Path(name).is_relative_to(_PACKAGE) or Path(name).is_relative_to(Path(__file__).parent)


def _most_memory() -> int:
    """The most memory that this process has used so far, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
