"""The memory one contestant takes: a process's peak never falls and counts all it holds, so each has one of its own.

Told is what the contestant adds to a process that has drawn with a tiny model already: weights, keys and values, and
everything in between. On Linux that is resident memory, and what loading takes for a moment is left out (where the
system allows the peak to begin anew); on a GPU it is what torch allocates. Elsewhere nothing is told.

Memory is greatest at the end of an image, so transformers, which is slow, draws only the last pixels, with keys and
values put where those before them would be.
"""

import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from imagegpt.benchmarking.implementations import Contestant, TheirDraw
from imagegpt.config import ImageGPTConfig

_LAST_PIXELS = 4


def bytes_in_a_process(contestant: Contestant, model: str, device: str, batch: int, num_pixels: int) -> int | None:
    """The peak of the bytes that drawing takes, in a new process with as many threads; None if it cannot be known.

    Args:
        contestant: who draws, in which precision.
        model: its name.
        device: where.
        batch: images drawn at once.
        num_pixels: drawn of each.
    Raises: MemoryError if the system ended the process for lack of memory.
    """
    task = {**dataclasses.asdict(contestant), "model": model, "device": device}
    task |= {"batch": batch, "num_pixels": num_pixels, "threads": torch.get_num_threads()}
    return _told_by_a_process(task)["bytes"]


def _told_by_a_process(task: Mapping[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", "imagegpt.benchmarking", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == -9:  # what Linux does to those who ask for too much
        raise MemoryError
    if done.returncode:
        raise RuntimeError(f"the process that measures memory failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def added_bytes(task: Mapping[str, Any]) -> dict[str, Any]:
    """What `bytes_in_a_process` tells, in the process itself, for its task."""
    torch.set_num_threads(task["threads"])
    device = task["device"]
    contestant = Contestant(**{field.name: task[field.name] for field in dataclasses.fields(Contestant)})
    tiny = ImageGPTConfig(vocab_size=11, n_positions=4, n_embd=16, n_layer=1, n_head=2)
    contestant.make(tiny, device)(1, 4)  # what is loaded or allocated at first use is not the model's
    before = in_use(device)
    draw = contestant.make(task["model"], device)
    _forget_peak(device)
    if isinstance(draw, TheirDraw):
        few = min(_LAST_PIXELS, task["num_pixels"] - 1)
        draw.step_s(task["batch"], task["num_pixels"] - 1 - few, max(1, few))
    else:
        draw(task["batch"], task["num_pixels"])
    peak = in_use(device, peak=True)
    added = None if peak is None or before is None else max(0, peak - before)
    return {"bytes": added}


def in_use(device: str, *, peak: bool = False) -> int | None:
    """Bytes this process uses on a device, or the most it has used so far; None if it cannot be known."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    field = "VmHWM:" if peak else "VmRSS:"
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), None)


def _forget_peak(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
