"""What the benchmarks share: fair timing of several contestants in one run, a table, and the JSON line at the end."""

import argparse
import json
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
from transformers.models.imagegpt import ImageGPTConfig as ReferenceConfig
from transformers.models.imagegpt import ImageGPTForCausalImageModeling as ReferenceModel

from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling


def parser(doc: str) -> argparse.ArgumentParser:
    """The options every benchmark has."""
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=5, help="timed rounds; every contestant runs once in each")
    options.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    options.add_argument("--out", type=Path, help="also append the JSON line to this file")
    return options


def both_models(size: str, device: str) -> tuple[ImageGPTForCausalImageModeling, ReferenceModel]:
    """Our model of a named size and transformers', with the same random weights, in float32, for evaluation."""
    config = ImageGPTConfig.from_size(size)
    ours = ImageGPTForCausalImageModeling(config).eval().to(device)
    theirs = ReferenceModel(ReferenceConfig(**config.to_dict())).eval().to(device)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


def measure(contestants: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every contestant in every round.

    Each runs once to warm up; then they take turns, so that a drift of the machine's speed falls on all alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for name, run in contestants.items():
        print(f"warming up: {name}", file=sys.stderr)
        run()
        _synchronize()
    for turn in range(repeats):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            _synchronize()
            seconds[name].append(time.perf_counter() - start)
        print(f"round {turn + 1} of {repeats}", file=sys.stderr)
    return seconds


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(seconds: Mapping[str, list[float]], slow: str, fast: str) -> dict[str, float]:
    """How many times faster `fast` is: the median over rounds of the ratio within a round, and its extremes."""
    ratios = [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def print_times(seconds: Mapping[str, list[float]], unit: str = "s", scale: float = 1.0) -> None:
    """A line for each contestant: median (least .. most)."""
    width = max(map(len, seconds))
    for name, values in seconds.items():
        numbers = [value * scale for value in values]
        low, middle, high = min(numbers), statistics.median(numbers), max(numbers)
        print(f"{name:<{width}}  {middle:9.3f} {unit}  ({low:.3f} .. {high:.3f})")


def print_ratio(text: str, result: Mapping[str, float]) -> None:
    """A ratio with its spread."""
    print(f"{text}: {result['median']:.2f}x  ({result['min']:.2f} .. {result['max']:.2f})")


def finish(name: str, options: argparse.Namespace, results: Mapping[str, Any]) -> None:
    """Print the JSON line that makes a result reproducible: what ran, on what, with which versions and settings."""
    line = json.dumps(
        {
            "benchmark": name,
            "command": " ".join(["python", *sys.argv]),
            "commit": _commit(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name(),
            "threads": torch.get_num_threads(),
            "settings": {key: str(value) for key, value in vars(options).items()},
            **results,
        }
    )
    print(line)
    if options.out:
        with options.out.open("a") as file:
            file.write(line + "\n")


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")
