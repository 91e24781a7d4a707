"""What this machine is, as far as code that was compiled on it cares."""

import functools
import platform
from pathlib import Path

import torch


@functools.cache
def machine() -> str:
    """What code that was compiled here needs: the processor's abilities, the libraries."""
    flags = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), flags)
    except OSError:
        pass
    return f"{torch.__version__} {platform.machine()} {platform.system()} {flags}"
