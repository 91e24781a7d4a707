"""Whether work fits the machine, asked before it begins.

The kernel grants memory it does not have and ends the process later, without a word. So whoever knows from a user's
numbers how much memory they take says so here first.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def check_memory(what: str, needed_bytes: float, advice: str) -> None:
    """See that there is memory for some work; where nobody can tell, nothing is refused.

    Args:
        what: the work, as the subject of the sentence.
        needed_bytes: what it takes at least.
        advice: what to do otherwise.
    Raises: ValueError, in one sentence, if it would not fit.
    """
    _check(what, needed_bytes, available_bytes(), "memory", advice)


def check_disk(what: str, needed_bytes: float, folder: Path, advice: str) -> None:
    """See that there is room on the disk of a folder, or of the first of its parents that is there.

    Raises: ValueError as `check_memory`.
    """
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    _check(what, needed_bytes, shutil.disk_usage(there).free, f"disk space at {there}", advice)


def available_bytes() -> int | None:
    """Memory this process can still get: what the machine has, or its control group allows; None if nobody can tell."""
    known = [one for one in (_of_machine(), *_of_control_groups()) if one is not None]
    return min(known, default=None)


def readable_bytes(num: float) -> str:
    """A number of bytes in decimal units, three digits."""
    return with_unit(num, "B")


def with_unit(num: float, unit: str) -> str:
    """A number of units of which there may be very many, three digits: 2,500 bytes are 2.5 kB."""
    value, prefix = float(num), ""
    for larger in ("k", "M", "G", "T", "P"):
        if value < 999.5:
            break
        value, prefix = value / 1000, larger
    return f"{value:.3g} {prefix}{unit}" if value < 999.5 else f"{value:,.0f} {prefix}{unit}"


def _check(what: str, needed: float, available: int | None, of_what: str, advice: str) -> None:
    if available is not None and needed > available:
        raise ValueError(
            f"{what} would take at least {readable_bytes(needed)} of {of_what}, of which {readable_bytes(available)} "
            f"are free: {advice}"
        )


def _of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pass
    try:  # macOS says how much there is, not how much is free
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _of_control_groups() -> Iterator[int | None]:
    """What Linux' control groups leave, of either version, as a container or a job of a cluster sees its own."""
    yield _left(_CGROUPS / "memory.max", _CGROUPS / "memory.current", "inactive_file")
    memory = _CGROUPS / "memory"
    yield _left(memory / "memory.limit_in_bytes", memory / "memory.usage_in_bytes", "total_inactive_file")


def _left(limit: Path, used: Path, cache_field: str) -> int | None:
    try:
        most, now = int(limit.read_text(encoding="ascii")), int(used.read_text(encoding="ascii"))
        fields = dict(line.split() for line in (limit.parent / "memory.stat").read_text(encoding="ascii").splitlines())
        return max(0, most - now + int(fields.get(cache_field, 0)))  # what files left in the cache makes way
    except (OSError, ValueError):  # no such group, or "max"
        return None
