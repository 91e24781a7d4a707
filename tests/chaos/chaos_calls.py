"""The library of `chaos.c`: compiled once, and armed in a process that is to be killed or to have an error."""

import ctypes
import enum
import errno
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("chaos.c")


class Action(enum.Enum):
    """What becomes of the n-th change to files; the order is that of `chaos.c`."""

    COUNT = 0
    KILL = 1
    FAIL_ONCE = 2
    FAIL_FROM = 3


@dataclass(frozen=True)
class Trouble:
    """What a process meets at its n-th change to files."""

    action: Action
    number: int = 0
    error: int = 0

    def __str__(self):
        if self.action is Action.KILL:
            return "killed"
        name = errno.errorcode[self.error]
        return name if self.action is Action.FAIL_ONCE else f"{name} from there on"


KINDS = [
    Trouble(Action.KILL),
    Trouble(Action.FAIL_ONCE, error=errno.ENOSPC),
    Trouble(Action.FAIL_ONCE, error=errno.EIO),
    Trouble(Action.FAIL_FROM, error=errno.ENOSPC),
]


def compiled(folder):
    """The library, built into a folder."""
    library = Path(folder) / "chaos.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", library, SOURCE]
    subprocess.run([*map(str, command)], check=True)
    return library


def arm(library, below, trouble, log=-1):
    """Let this process meet trouble at changes to the files below a folder; `log` is an open file for their names."""
    calls = ctypes.CDLL(str(library), use_errno=True)
    if calls.chaos_arm(str(below).encode(), trouble.action.value, ctypes.c_long(trouble.number), trouble.error, log):
        raise OSError(ctypes.get_errno(), "seccomp filters cannot be set here")
