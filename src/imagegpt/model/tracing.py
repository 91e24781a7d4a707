"""Detection of tracing: is torch computing, or recording operations on tensors whose values cannot be read?"""

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode


def is_tracing() -> bool:
    """Whether operations are traced or transformed by `torch.compile`, `torch.export`, `torch.func` or a dispatch mode.

    Dispatch modes are `FakeTensorMode`, that of `make_fx`, and counters such as `FlopCounterMode`.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or _get_current_dispatch_mode() is not None
    )


def is_plain_tensor(x: Tensor) -> bool:
    """Whether a tensor is an ordinary one: not fake, sharded, quantised or another subclass."""
    return type(x) in (Tensor, nn.Parameter)


def can_read_values(x: Tensor) -> bool:
    """Whether reading a tensor's values is free and breaks no graph; on a GPU it would wait for the device."""
    return not is_tracing() and is_plain_tensor(x) and x.device.type == "cpu" and x.numel() > 0
