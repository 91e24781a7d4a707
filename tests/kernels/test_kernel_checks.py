"""Kernels refuse invalid inputs instead of reading outside their memory."""

import pytest
import torch

from helpers import tiny_model
from imagegpt.sampling import Sampler


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


def all_heads(*shape, dtype=torch.float32):
    return {name: zeros(*shape, dtype=dtype) for name in ("query", "key", "value")}


RIGHT = all_heads(2, 3, 20, 16) | {"scale": 1.0, "is_causal": True}
RIGHT_BACKWARD = RIGHT | {"out_grad": zeros(2, 20, 3, 16), "out": zeros(2, 20, 3, 16), "logsumexp": zeros(2, 3, 20)}
WRONG = [
    ({"key": zeros(2, 3, 20, 16, dtype=torch.float16)}, r"key is \(2, 3, 20, 16\) in torch.float16, but"),
    (
        {"value": zeros(2, 3, 19, 16)},
        r"value is \(2, 3, 19, 16\) .* needs \(2, 3, 20, 16\) in torch.float32",
    ),
    ({"key": zeros(1, 3, 20, 16)}, r"key is \(1, 3, 20, 16\) .* needs \(2, 3, 20, 16\)"),
    (all_heads(2, 3, 20, 16, dtype=torch.float64), "no attention kernel for torch.float64 on this CPU: convert"),
    (all_heads(2, 3, 20, 8), "the head width is 8: attention kernels need a multiple of 16"),
    (
        {"query": zeros(2, 3, 21, 16)},
        "21 queries have 20 keys: attention needs at least 1, or 1 per query if causal",
    ),
    (all_heads(2, 3, 0, 16) | {"is_causal": False}, "0 queries have 0 keys"),
]
WRONG_BACKWARD = [
    ({"out_grad": zeros(2, 20, 3, 16, dtype=torch.float64)}, "out_grad is .* in torch.float64"),
    ({"out": zeros(2, 3, 20, 16)}, r"out is \(2, 20, 3, 16\) .* needs \(2, 3, 20, 16\)"),
    ({"logsumexp": zeros(2, 3, 19)}, r"logsumexp is \(2, 3, 19\) .* needs \(2, 3, 20\)"),
    ({"logsumexp": zeros(2, 3, 20, dtype=torch.float64)}, "logsumexp is .* in torch.float64"),
]


@pytest.mark.parametrize(
    ("name", "right", "wrong", "message"),
    [("attention", RIGHT, *case) for case in WRONG]
    + [("attention_backward", RIGHT_BACKWARD, *case) for case in WRONG_BACKWARD],
)
def test_attention_refuses_invalid_inputs(name, right, wrong, message, with_training_kernels):
    """Regression: short tensors were read beyond their end."""
    kernel = getattr(torch.ops.imagegpt, name)
    kernel(**right)
    with pytest.raises(ValueError, match=message):
        kernel(**(right | wrong))


@pytest.fixture
def step():
    """Steps a model with 16 colours and 16 pixels; its only row continues a prompt of 5 pixels."""
    backend = Sampler(tiny_model(), backend="cpp").plan.make_backend(1, 16)
    backend.admit(0, torch.tensor([1, 2, 3, 4, 5]))

    def feed(token, position):
        return backend.step(torch.tensor([[token]]), torch.tensor([[position]]), [0], position + 1)

    return feed


@pytest.mark.parametrize(
    ("token", "position"), [(17, 3), (-1, 3), (2**40, 3), (0, 16), (0, -1), (0, 2), (0, 2**40)], ids=str
)
def test_the_step_refuses_invalid_tokens_and_positions(token, position, step):
    """Positions before 4 belong to a prefix that other images may share."""
    for place in range(5, 16):
        assert step(16, place).isfinite().all()
    with pytest.raises(IndexError, match="a token is outside 0 to 16, or a position is outside the cache"):
        step(token, position)


def test_prefill_refuses_invalid_tokens():
    backend = Sampler(tiny_model(), backend="cpp").plan.make_backend(1, 16)
    with pytest.raises(IndexError, match="a token is outside 0 to 16"):
        backend.admit(0, torch.tensor([1, 17, 3]))
