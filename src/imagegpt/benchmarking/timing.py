"""Fair timing of several contestants in one run, and the facts that make a result reproducible."""

import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from imagegpt import __version__


class Seconds(float):
    """What a contestant returns that measures its own time."""


def measure(
    contestants: Mapping[str, Callable[[], Any]],
    repeats: int,
    on_run: Callable[[str], None] | None = None,
    warm_ups: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every contestant in every round.

    Each runs once to warm up; then they take turns, so that a drift of the machine's speed falls on all alike.

    Args:
        contestants: what to run, by name; one that returns `Seconds` is taken at its word.
        repeats: timed rounds.
        on_run: called before each run with what it is.
        warm_ups: what some of them do instead to warm up.
    """
    first = {**contestants, **(warm_ups or {})}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, run in (contestants if turn else first).items():
            if on_run is not None:
                on_run(f"round {turn} of {repeats}: {name}" if turn else f"warming up: {name}")
            elapsed = seconds_of(run)
            if turn:
                seconds[name].append(elapsed)
    return seconds


def ratio(seconds: Mapping[str, list[float]], slow: str, fast: str) -> dict[str, float]:
    """How many times faster `fast` is: the median over rounds of the ratio within a round, and its extremes."""
    ratios = [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


class MemoryReader:
    """A contestant that does nothing but read memory, several times a run, with all threads or the whole GPU.

    Args:
        device: whose memory.
        num_bytes: read each time; by default far more than any processor's caches hold.
    """

    def __init__(self, device: str, num_bytes: int = 1 << 29) -> None:
        self._numbers = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
        self._rates: list[float] = []

    def __call__(self) -> None:
        """Read."""
        for _ in range(5):
            self._rates.append(self._numbers.nbytes / seconds_of(self._numbers.sum))

    def bytes_per_s(self) -> dict[str, float]:
        """What it reached so far: "best", which is the yardstick, and "median"."""
        return {"best": max(self._rates), "median": statistics.median(self._rates)}


def seconds_of(run: Callable[[], Any]) -> float:
    """How long a call takes, or what it returns if these are `Seconds`; a GPU is waited for."""
    start = time.perf_counter()
    result = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result if isinstance(result, Seconds) else time.perf_counter() - start


def environment(command: str) -> dict[str, Any]:
    """What ran, on what, with which versions and how many threads.

    Args:
        command: the program's name, as it is to stand before its arguments.
    """
    return {
        "command": " ".join([command, *sys.argv[1:]]),
        "imagegpt": __version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()).strip(),  # whose allocator decides how much memory lies idle
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name(),
        "threads": torch.get_num_threads(),
    }


def _commit() -> str | None:
    """The commit of the checkout this file is part of; None for an installed package, wherever it lies."""
    try:
        _git("ls-files", "--error-unmatch", "../__init__.py")
        return _git("describe", "--always", "--dirty")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*words: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")
