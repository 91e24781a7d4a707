"""What this machine is, as far as code that was compiled on it cares."""

import functools
import platform
from pathlib import Path


@functools.cache
def processor() -> str:
    """What code that was compiled here needs: the system, its C library, and the processor's abilities."""
    flags = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), flags)
    except OSError:
        pass
    return f"{platform.machine()} {platform.system()} {' '.join(platform.libc_ver())} {flags}"
