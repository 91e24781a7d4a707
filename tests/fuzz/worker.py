"""A forked child process that opens damaged copies one after the other under limits, and reports to its parent.

The child writes a line of JSON to a pipe at each stage of a case. If it crashes, the parent learns the stage from the
last line, and the reason from the exit status.
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
    WrongExitError,
    random_of,
)  # fmt: skip

CPU_SECONDS = 10  # per case
WALL_SECONDS = 60  # per case; generous, for a busy machine
MAX_MEMORY_GROWTH = 1 << 30  # bytes of resident memory
MAX_ADDRESS_SPACE_GROWTH = 3 << 30  # bytes of address space beyond those of the parent

OURS = (ValueError, OSError, ImportError)
_OTHERS = (
    "PIL", "httpx", "huggingface_hub", "json", "numpy", "pickle", "pyarrow", "pydantic_core", "requests", "safetensors",
    "safetensors_rust", "struct", "torch", "yaml", "zipfile",
)  # fmt: skip
_PACKAGE = Path(imagegpt.__file__).parent
_MAX_MESSAGE_LENGTH = 2_000  # of a message


class Worker:
    """A child process and its cases.

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
            warnings.simplefilter("ignore", DeprecationWarning)  # about forking with threads
            self._pid = os.fork()
        if not self._pid:
            os.close(self.fd)
            _run(kind, seed, numbers, scratch, out)
        os.close(out)

    def read(self) -> tuple[list[Result], bool]:
        """Return new results, and whether the child has exited."""
        piece = os.read(self.fd, 1 << 16)
        *lines, self._buffer = (self._buffer + piece).split(b"\n")
        results = [result for line in lines if (result := self._result_of(json.loads(line))) is not None]
        return results, not piece

    def stop_if_late(self) -> None:
        """Kill the child if a case takes too long."""
        if time.monotonic() - self._since > WALL_SECONDS and not self._was_late:
            self._was_late = True
            os.kill(self._pid, signal.SIGKILL)

    def finish(self) -> tuple[Result | None, list[int]]:
        """Return the result of the case that crashed the child, if any, and the remaining cases."""
        os.close(self.fd)
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        if not self._left or self._said_goodbye:
            return None, self._left
        is_hang = self._was_late or code == -signal.SIGXCPU
        detail = (
            f"more than {CPU_SECONDS} s"
            if is_hang
            else f"ended with {signal.Signals(-code).name if code < 0 else code}"
        )
        number, *left = self._left
        outcome = HANG if is_hang else CRASH
        return Result(number=number, mutant=self._mutant, parsed=self._parsed, outcome=outcome, detail=detail), left

    def _result_of(self, line: dict[str, Any]) -> Result | None:
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
    """Main function of the child: run cases up to the first that fails."""
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
    """Limit this process, redirect its output to files, and disable its network."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    faulthandler.disable()  # otherwise it would write to pytest's terminal
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (addresses + MAX_ADDRESS_SPACE_GROWTH,) * 2)
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
    time.sleep = partial(_sleep_briefly, time.sleep)  # retries of downloads


def limit_time() -> None:
    """Make the operating system kill this process after a limit of CPU time."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used) + CPU_SECONDS, hard))


def _sleep_briefly(sleep: Callable[[float], None], seconds: float) -> None:
    sleep(min(seconds, 0.01))


def _refuse(*_: Any) -> NoReturn:
    raise ConnectionRefusedError(111, "the fuzzer has no network")


def _run_case(kind: Kind, seed: int, number: int, case_folder: Path, pipe: Any) -> bool:
    """Mutate, parse and open a case; return whether the child can continue."""

    def send(**line: Any) -> None:
        pipe.write(json.dumps(line) + "\n")

    limit_time()
    try:
        mutant = kind.mutate(case_folder, random_of(seed, kind.name, number))
        send(mutant=dataclasses.asdict(mutant))
    except Exception:  # noqa: BLE001 - it is reported as what it is
        send(result={"outcome": FUZZER, "detail": traceback.format_exc()})
        return False
    with contextlib.suppress(Exception):  # a parser that raises rejects it
        send(parsed=kind.passes_first_parser(case_folder))
    before = _peak_memory()
    outcome, detail = opened(kind, case_folder)
    growth = _peak_memory() - before
    if growth > MAX_MEMORY_GROWTH:
        outcome, detail = MEMORY, f"{growth:,} bytes more; {outcome}: {detail}"
    if kind.parsed_while_open is not None:
        send(parsed=kind.parsed_while_open)
    send(result={"outcome": outcome, "detail": detail})
    shutil.rmtree(case_folder, ignore_errors=True)
    return outcome in (ACCEPTED, REFUSED)


def opened(kind: Kind, case_folder: Path) -> tuple[str, str]:
    """Open a case; return its outcome and detail."""
    try:
        return ACCEPTED, kind.open(case_folder)
    except WrongExitError as error:
        return EXIT, str(error)
    except MemoryError:
        return MEMORY, traceback.format_exc()
    except Exception as error:  # noqa: BLE001 - the fuzzer looks at what it is
        if is_ours(error):
            return REFUSED, f"{type(error).__name__}: {error}"
        return FOREIGN, traceback.format_exc()


def is_ours(error: Exception) -> bool:
    """Whether an error is raised by our code for users: an ordinary type with a message of one line.

    Errors of the operating system, which name the file, need not come from our code.
    """
    if not isinstance(error, OURS) or type(error).__module__.partition(".")[0] in _OTHERS:
        return False
    if isinstance(error, UnicodeError):
        return False
    raised_in = [frame.filename for frame in traceback.extract_tb(error.__traceback__)][-1:]
    if not (isinstance(error, OSError) and error.strerror) and not any(_is_our_file(name) for name in raised_in):
        return False
    text = str(error)
    return bool(text) and "\n" not in text and len(text) <= _MAX_MESSAGE_LENGTH


def _is_our_file(name: str) -> bool:
    """Whether code belongs to the package, or to the fuzzer, which forwards messages of commands."""
    return Path(name).is_relative_to(_PACKAGE) or Path(name).is_relative_to(Path(__file__).parent)


def _peak_memory() -> int:
    """Peak memory of this process in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
