"""What a kernel cannot take is refused in a sentence, and its memory is not read."""

import pytest
import torch

from helpers import tiny_model
from imagegpt.sampling import Sampler


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


def all_heads(*shape, dtype=torch.float32):
    return {name: zeros(*shape, dtype=dtype) for name in ("query", "key", "value")}


RIGHT = all_heads(2, 3, 20, 16) | {"scale": 1.0, "is_causal": True}
RIGHT_BACKWARD = RIGHT | {"grad": zeros(2, 20, 3, 16), "out": zeros(2, 20, 3, 16), "log_sums": zeros(2, 3, 20)}
WRONG = [
    ({"key": zeros(2, 3, 20, 16, dtype=torch.float16)}, r"key is \(2, 3, 20, 16\) in torch.float16, but"),
    (
        {"value": zeros(2, 3, 19, 16)},
        r"value is \(2, 3, 19, 16\) .* needs \(2, 3, 20, 16\) in torch.float32",
    ),
    ({"key": zeros(1, 3, 20, 16)}, r"key is \(1, 3, 20, 16\) .* needs \(2, 3, 20, 16\)"),
    (all_heads(2, 3, 20, 16, dtype=torch.float64), "no attention kernel for torch.float64 on this processor: convert"),
    (all_heads(2, 3, 20, 8), "heads are 8 wide: attention kernels take multiples of 16"),
    ({"query": zeros(2, 3, 21, 16)}, "21 queries have 20 keys: attention needs one, and one for each query if causal"),
    (all_heads(2, 3, 0, 16) | {"is_causal": False}, "0 queries have 0 keys"),
]
WRONG_BACKWARD = [
    ({"grad": zeros(2, 20, 3, 16, dtype=torch.float64)}, "grad is .* in torch.float64"),
    ({"out": zeros(2, 3, 20, 16)}, r"out is \(2, 20, 3, 16\) .* needs \(2, 3, 20, 16\)"),
    ({"log_sums": zeros(2, 3, 19)}, r"log_sums is \(2, 3, 19\) .* needs \(2, 3, 20\)"),
    ({"log_sums": zeros(2, 3, 20, dtype=torch.float64)}, "log_sums is .* in torch.float64"),
]


@pytest.mark.parametrize(
    ("name", "right", "wrong", "message"),
    [("attention", RIGHT, *case) for case in WRONG]
    + [("attention_backward", RIGHT_BACKWARD, *case) for case in WRONG_BACKWARD],
)
def test_what_attention_cannot_take_is_refused(name, right, wrong, message, with_training_kernels):
    """Before, short tensors were read beyond their end."""
    kernel = getattr(torch.ops.imagegpt, name)
    kernel(**right)
    with pytest.raises(ValueError, match=message):
        kernel(**(right | wrong))


@pytest.fixture
def step():
    """Feeds the step of a model with 16 colours and 16 pixels, whose one row continues a prompt of 3 pixels."""
    backend = Sampler(tiny_model(), backend="cpp").plan.open_backend(1, 16)
    backend.admit(0, torch.tensor([1, 2, 3, 4, 5]))

    def feed(token, position):
        return backend.step(torch.tensor([[token]]), torch.tensor([[position]]), [0], position + 1)

    return feed


@pytest.mark.parametrize(
    ("token", "position"), [(17, 3), (-1, 3), (2**40, 3), (0, 16), (0, -1), (0, 2), (0, 2**40)], ids=str
)
def test_tokens_and_positions_that_are_not_there_are_refused(token, position, step):
    """Positions before 4 belong to the prompt, which other images may share."""
    for place in range(5, 16):
        assert step(16, place).isfinite().all()
    with pytest.raises(IndexError, match="a token is not below 17, or a position has no place in the cache"):
        step(token, position)


def test_tokens_of_a_prompt_that_are_not_there_are_refused():
    backend = Sampler(tiny_model(), backend="cpp").plan.open_backend(1, 16)
    with pytest.raises(IndexError, match="a token is not below 17"):
        backend.admit(0, torch.tensor([1, 17, 3]))
