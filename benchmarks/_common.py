"""Shared by the benchmarks: command-line options, timing, tables, and the JSON line at the end."""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.models.imagegpt import ImageGPTConfig as ReferenceConfig
from transformers.models.imagegpt import ImageGPTForCausalImageModeling as ReferenceModel

from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling
from imagegpt.benchmarking import timing


def parser(doc: str) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=5, help="timed rounds; everything runs once in each")
    options.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    options.add_argument("--out", type=Path, help="also append the JSON line to this file")
    return options


def both_models(size: str, device: str) -> tuple[ImageGPTForCausalImageModeling, ReferenceModel]:
    """Our model and transformers' of a named size, with the same random weights, in float32 and evaluation mode."""
    config = ImageGPTConfig.from_size(size)
    ours = ImageGPTForCausalImageModeling(config).eval().to(device)
    theirs = ReferenceModel(ReferenceConfig(**config.to_dict())).eval().to(device)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


def measure(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """See `imagegpt.benchmarking.timing.measure`; prints each run on stderr."""
    return timing.measure(functions, repeats, lambda run: print(run, file=sys.stderr))


def print_times(seconds: Mapping[str, list[float]], unit: str = "s", scale: float = 1.0) -> None:
    """A line per function: median (min .. max)."""
    width = max(map(len, seconds))
    for name, values in seconds.items():
        numbers = [value * scale for value in values]
        low, middle, high = min(numbers), statistics.median(numbers), max(numbers)
        print(f"{name:<{width}}  {middle:9.3f} {unit}  ({low:.3f} .. {high:.3f})")


def print_speedup(text: str, result: Mapping[str, float]) -> None:
    """A speedup with its spread."""
    print(f"{text}: {result['median']:.2f}x  ({result['min']:.2f} .. {result['max']:.2f})")


def print_speedups(seconds: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """Print and return the speedups over transformers, for the precisions that were measured."""
    pairs = {
        "float32": ("float32 over float32", "transformers float32", "imagegpt float32"),
        "bfloat16": ("bfloat16 over bfloat16", "transformers bfloat16", "imagegpt bfloat16"),
        "bfloat16_against_float32": ("our bfloat16 over their float32", "transformers float32", "imagegpt bfloat16"),
    }
    speedups = {}
    for name, (text, theirs, ours) in pairs.items():
        if theirs in seconds and ours in seconds:
            speedups[name] = timing.speedup(seconds, theirs, ours)
            print_speedup(text, speedups[name])
    return speedups


def finish(name: str, options: argparse.Namespace, results: Mapping[str, Any]) -> None:
    """Print the results as a JSON line, with the settings and environment needed to reproduce them."""
    settings = {key: str(value) for key, value in vars(options).items()}
    facts = timing.environment(f"python {sys.argv[0]}")
    line = json.dumps({"benchmark": name, **facts, "settings": settings, **results})
    print(line)
    if options.out:
        with options.out.open("a") as file:
            file.write(line + "\n")
