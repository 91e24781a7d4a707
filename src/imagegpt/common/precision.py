"""Which arithmetic suits a device: one rule, for training and for sampling.

bfloat16 pays where a device multiplies it. Where it does not, each product is put together from float32 ones, and a
training step takes several times as long; the figures are in docs/decisions, on the page about precision.
"""

from dataclasses import dataclass
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]

_CPU_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")  # torch's names for them
_LEAST_CUDA_CAPABILITY = (8, 0)


@dataclass(frozen=True, kw_only=True)
class PrecisionChoice:
    """A precision, and why it is this one.

    Args:
        precision: of products; sums, norms and losses are in float32.
        reason: half a sentence for the user.
    """

    precision: Precision
    reason: str

    def __str__(self) -> str:
        return f"{self.precision} ({self.reason})"


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums are taken: float32 for half precision, else the dtype itself."""
    return torch.promote_types(dtype, torch.float32)


@torch.compiler.assume_constant_result  # so that compiled code may ask
def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for products in bfloat16 that are known to be faster than float32's.

    Those are AVX-512 BF16 and AMX on CPUs, and tensor cores from compute capability 8.0 on. Processors by ARM and
    Apple's GPUs may have some; as nobody has measured ours there, the answer for them is no.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _LEAST_CUDA_CAPABILITY
    if device.type == "cpu":
        abilities = torch.cpu.get_capabilities()
        return any(abilities.get(name, False) for name in _CPU_INSTRUCTIONS)
    return False


def choose_precision(
    asked: Literal["auto"] | Precision, device: torch.device, recorded: Precision | None = None
) -> PrecisionChoice:
    """What to compute in.

    Args:
        asked: "auto" takes bfloat16 where the device multiplies it, else float32; anything else is taken as it is.
        device: where.
        recorded: what the work was begun in, if it is resumed; "auto" keeps it, whatever this device is.
    """
    is_fast = multiplies_bfloat16(device)
    has = f"{_name(device)} has {'instructions' if is_fast else 'no instructions'} for bfloat16"
    if asked == "auto" and recorded is None:
        return PrecisionChoice(precision="bfloat16" if is_fast else "float32", reason=has)
    precision = recorded if asked == "auto" else asked
    assert precision is not None, "else it would have been chosen above"
    reason = "as before" if asked == "auto" else "as asked"
    if precision == "bfloat16" and not is_fast:
        reason += f", although {has}: float32 is faster here"
    return PrecisionChoice(precision=precision, reason=reason)


def _name(device: torch.device) -> str:
    return {"cpu": "this processor", "cuda": "this GPU"}.get(device.type, f"the device {device.type}")
