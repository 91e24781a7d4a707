"""Peak memory of an implementation, measured in a subprocess.

The measurement is what the implementation adds to a process that has already sampled with a tiny model: weights, keys
and values, and all temporary tensors. On Linux it is resident memory, without the temporary peak of loading (where the
system lets a process reset its peak); on a GPU it is what torch allocates. On other systems it is unknown.

Memory is highest at the end of an image. transformers is slow, so it samples only the last pixels, after its cache was
filled with constants.
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

from imagegpt.benchmarking.implementations import Implementation, TransformersRunner
from imagegpt.config import ImageGPTConfig

_NUM_LAST_PIXELS = 4


def peak_bytes_in_subprocess(
    implementation: Implementation, model: str, device: str, batch: int, num_pixels: int
) -> int | None:
    """Measure the peak memory of sampling in a new process with as many threads; None if unknown.

    Raises: MemoryError if the system killed the process, which it does when memory runs out.
    """
    task = {**dataclasses.asdict(implementation), "model": model, "device": device}
    task |= {"batch": batch, "num_pixels": num_pixels, "threads": torch.get_num_threads()}
    command = [sys.executable, "-P", "-m", "imagegpt.benchmarking", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == -9:
        raise MemoryError
    if done.returncode:
        raise RuntimeError(f"the subprocess that measures memory failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])["bytes"]


def measure_added_bytes(task: Mapping[str, Any]) -> dict[str, Any]:
    """The subprocess of `peak_bytes_in_subprocess`: run its task and return the bytes."""
    torch.set_num_threads(task["threads"])
    device = task["device"]
    implementation = Implementation(**{field.name: task[field.name] for field in dataclasses.fields(Implementation)})
    tiny = ImageGPTConfig(vocab_size=11, n_positions=4, n_embd=16, n_layer=1, n_head=2)
    implementation.load(tiny, device)(1, 4)  # exclude what the first use loads and allocates
    before = memory_in_use(device)
    runner = implementation.load(task["model"], device)
    _reset_peak(device)
    if isinstance(runner, TransformersRunner):
        num_steps = min(_NUM_LAST_PIXELS, task["num_pixels"] - 1)
        runner.step_s(task["batch"], task["num_pixels"] - 1 - num_steps, max(1, num_steps))
    else:
        runner(task["batch"], task["num_pixels"])
    peak = memory_in_use(device, peak=True)
    return {"bytes": None if peak is None or before is None else max(0, peak - before)}


def memory_in_use(device: str, *, peak: bool = False) -> int | None:
    """Bytes this process uses on a device, or its peak so far; None if unknown."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    field = "VmHWM:" if peak else "VmRSS:"
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), None)


def _reset_peak(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
