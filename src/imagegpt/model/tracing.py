"""Whether tensors have values to look at, or stand for values while torch records or transforms what is computed."""

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode


def is_traced() -> bool:
    """Whether operations are being recorded or transformed: `torch.compile`, `torch.export`, `torch.func`, any mode.

    Modes are `FakeTensorMode`, the one by which `make_fx` records, and counters such as `FlopCounterMode`.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or _get_current_dispatch_mode() is not None
    )


def is_plain(x: Tensor) -> bool:
    """Whether a tensor is torch's own: not fake, sharded, quantised or the like."""
    return type(x) in (Tensor, nn.Parameter)


def has_values(x: Tensor) -> bool:
    """Whether looking at a tensor's values costs nothing and breaks no graph: on a GPU it would wait for the device."""
    return not is_traced() and is_plain(x) and x.device.type == "cpu" and x.numel() > 0
