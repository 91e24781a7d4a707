"""Fair timing of several functions, read bandwidth, and the environment that makes a result reproducible."""

import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers


class Seconds(float):
    """The return value of a function that measures its own time."""


def measure(
    functions: Mapping[str, Callable[[], Any]],
    repeats: int,
    on_run: Callable[[str], None] | None = None,
    warm_ups: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, list[float]]:
    """Return the seconds of each function in each round.

    Each function runs once to warm up, then once per round, so that changes in the machine's speed affect all alike.

    Args:
        functions: by name; if one returns `Seconds`, those count.
        warm_ups: replacements for the warm-up of some functions.
    """
    first_round = {**functions, **(warm_ups or {})}
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_index in range(repeats + 1):
        for name, function in (functions if round_index else first_round).items():
            if on_run is not None:
                on_run(f"round {round_index} of {repeats}: {name}" if round_index else f"warming up: {name}")
            elapsed = time_call(function)
            if round_index:
                seconds[name].append(elapsed)
    return seconds


def speedup(seconds: Mapping[str, list[float]], slow: str, fast: str) -> dict[str, float]:
    """How many times faster `fast` is than `slow` within a round: median, min and max over the rounds."""
    ratios = [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


class ReadBandwidth:
    """Measures read bandwidth: each call sums a large tensor several times, with all threads or the whole GPU.

    Args:
        num_bytes: size of the tensor; the default is far larger than CPU caches.
    """

    def __init__(self, device: str, num_bytes: int = 1 << 29) -> None:
        self._tensor = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
        self._rates: list[float] = []

    def __call__(self) -> None:
        """Measure."""
        for _ in range(5):
            self._rates.append(self._tensor.nbytes / time_call(self._tensor.sum))

    def bytes_per_s(self) -> dict[str, float]:
        """The "best" and the "median" of all measurements."""
        return {"best": max(self._rates), "median": statistics.median(self._rates)}


def time_call(function: Callable[[], Any]) -> float:
    """The duration of a call, GPU work included; or its return value if that is `Seconds`."""
    start = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result if isinstance(result, Seconds) else time.perf_counter() - start


def environment(command: str) -> dict[str, Any]:
    """The command (a program's name; its arguments are added), versions, hardware and number of threads."""
    return {
        "command": " ".join([command, *sys.argv[1:]]),
        "imagegpt": version("imagegpt"),
        "commit": _commit(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()).strip(),  # its allocator affects memory
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name(),
        "threads": torch.get_num_threads(),
    }


def _commit() -> str | None:
    """The commit of the checkout that contains this file; None for an installed package, even inside a checkout."""
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
