"""Choose the precision for a device; training and sampling use the same rule.

bfloat16 is faster only where the hardware multiplies it. Elsewhere it is emulated with float32 products, and a training
step takes several times as long; docs/decisions has measurements on its page about precision.
"""

from dataclasses import dataclass
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]

_CPU_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")  # as torch names them
_MIN_CUDA_CAPABILITY = (8, 0)


@dataclass(frozen=True, kw_only=True)
class PrecisionChoice:
    """A precision and the reason for choosing it.

    Args:
        precision: of matrix products; sums, norms and losses use float32.
    """

    precision: Precision
    reason: str

    def __str__(self) -> str:
        return f"{self.precision} ({self.reason})"


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return float32 for half-precision dtypes, else the dtype itself: the dtype to accumulate in."""
    return torch.promote_types(dtype, torch.float32)


@torch.compiler.assume_constant_result  # callable from compiled code
def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions that multiply bfloat16 faster than float32.

    These are AVX-512 BF16 and AMX on CPUs, and tensor cores from compute capability 8.0 on. ARM processors and Apple
    GPUs may have them too, but we have no measurements there: they return False.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _MIN_CUDA_CAPABILITY
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in _CPU_INSTRUCTIONS)
    return False


def choose_precision(
    requested: Literal["auto"] | Precision, device: torch.device, recorded: Precision | None = None
) -> PrecisionChoice:
    """Choose the precision to compute in.

    Args:
        requested: "auto" chooses bfloat16 where it is fast, else float32; any other value is used unchanged.
        recorded: the precision of the run that is resumed, if any; "auto" keeps it on every device.
    """
    is_fast = has_fast_bfloat16(device)
    has = f"{_name(device)} has {'instructions' if is_fast else 'no instructions'} for bfloat16"
    if requested == "auto" and recorded is None:
        return PrecisionChoice(precision="bfloat16" if is_fast else "float32", reason=has)
    precision = recorded if requested == "auto" else requested
    assert precision is not None, "this case returned above"
    reason = "as before" if requested == "auto" else "as requested"
    if precision == "bfloat16" and not is_fast:
        reason += f", although {has}: float32 is faster here"
    return PrecisionChoice(precision=precision, reason=reason)


def _name(device: torch.device) -> str:
    return {"cpu": "this processor", "cuda": "this GPU"}.get(device.type, f"the device {device.type}")
