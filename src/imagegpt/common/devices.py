"""Choose the device to compute on, and count the cores that this process may use."""

import os

import torch


def choose_device(device: torch.device | str | None) -> torch.device:
    """Return the requested device; for None, a GPU if there is one, else the CPU.

    Raises: ValueError if the device does not exist, or models do not run on it.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if str(device).partition(":")[0] == "mps":
        raise ValueError("Apple's GPUs (mps) lack float64, which sampling needs: choose cpu")
    if not _is_usable(device):
        available = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        raise ValueError(f"there is no device {str(device)!r} here: choose from {', '.join(available)}")
    return torch.device(device)


def num_cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_usable(device: torch.device | str) -> bool:
    """Whether tensors with data can be created on a device; torch has no other way to find out."""
    try:
        return torch.empty(0, device=device).device.type != "meta"
    except (RuntimeError, AssertionError, NotImplementedError):
        return False
