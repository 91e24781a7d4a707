"""Check that there is enough memory or disk space before work starts.

Linux overcommits memory and kills the process later, without an error message. Code that can tell from the user's
arguments how much memory it will need therefore calls `check_memory` first.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def check_memory(what: str, needed_bytes: float, advice: str) -> None:
    """Check that enough memory is free. Pass if the amount of free memory is unknown.

    Args:
        what: the work that needs the memory; the subject of the error message.
        needed_bytes: lower bound of what it needs.
        advice: what the user can do instead, for the error message.
    Raises: ValueError if there is too little.
    """
    _check(what, needed_bytes, available_memory(), "memory", advice)


def check_disk_space(what: str, needed_bytes: float, folder: Path, advice: str) -> None:
    """Check that enough disk space is free for a folder, which need not exist yet.

    Raises: ValueError if there is too little.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    _check(what, needed_bytes, shutil.disk_usage(existing).free, f"disk space at {existing}", advice)


def available_memory() -> int | None:
    """Return the bytes this process can still allocate, limited by machine and control group; None if unknown."""
    limits = (_machine_memory(), *_control_group_memory())
    return min((limit for limit in limits if limit is not None), default=None)


def format_bytes(num: float) -> str:
    """Format a number of bytes in decimal units with three digits: 2,500 is "2.5 kB"."""
    return format_si(num, "B")


def format_si(num: float, unit: str) -> str:
    """Format a quantity with an SI prefix and three digits: 2.5e9 FLOP is "2.5 GFLOP"."""
    value, prefix = float(num), ""
    for larger in ("k", "M", "G", "T", "P"):
        if value < 999.5:
            break
        value, prefix = value / 1000, larger
    return f"{value:.3g} {prefix}{unit}" if value < 999.5 else f"{value:,.0f} {prefix}{unit}"


def _check(what: str, needed: float, available: int | None, resource: str, advice: str) -> None:
    if available is not None and needed > available:
        raise ValueError(
            f"{what} needs at least {format_bytes(needed)} of {resource}, but only {format_bytes(available)} are free: "
            f"{advice}"
        )


def _machine_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pass
    try:  # macOS reports how much is installed, not how much is free
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _control_group_memory() -> Iterator[int | None]:
    """Yield what Linux control groups (v2, then v1) leave to this container or cluster job."""
    yield _remaining(_CGROUPS / "memory.max", _CGROUPS / "memory.current", "inactive_file")
    memory = _CGROUPS / "memory"
    yield _remaining(memory / "memory.limit_in_bytes", memory / "memory.usage_in_bytes", "total_inactive_file")


def _remaining(limit: Path, used: Path, cache_field: str) -> int | None:
    try:
        capacity, usage = int(limit.read_text(encoding="ascii")), int(used.read_text(encoding="ascii"))
        fields = dict(line.split() for line in (limit.parent / "memory.stat").read_text(encoding="ascii").splitlines())
        return max(0, capacity - usage + int(fields.get(cache_field, 0)))  # the page cache can be reclaimed
    except (OSError, ValueError):  # there is no such group, or its limit is "max"
        return None
