"""Choose the device to compute on."""

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


def _is_usable(device: torch.device | str) -> bool:
    """Whether tensors with data can be created on a device; torch has no other way to find out."""
    try:
        return torch.empty(0, device=device).device.type != "meta"
    except (RuntimeError, AssertionError, NotImplementedError):
        return False
