"""What a kernel cannot take is refused in a sentence, and its memory is not read."""

# ruff: noqa: E501 - a table

import pytest
import torch

from helpers import tiny_model
from imagegpt.kernels import training
from imagegpt.sampling import Sampler

pytestmark = pytest.mark.usefixtures("with_training_kernels")


def zeros(*shape):
    return torch.zeros(shape)


def with_gaps(*shape):
    return torch.zeros(*shape[:-1], 2 * shape[-1])[..., ::2]


HEADS = {name: zeros(2, 3, 20, 16) for name in ("query", "key", "value")} | {"scale": 1.0, "is_causal": True}
BACKWARD = {**HEADS, "grad": zeros(2, 3, 20, 16), "out": zeros(2, 3, 20, 16), "log_sums": zeros(2, 3, 20)}
NORM = {"x": zeros(4, 16), "weight": zeros(16), "eps": 1e-5, "out": zeros(4, 16)}
NORM_BACKWARD = {"x": zeros(4, 16), "weight": zeros(16), "eps": 1e-5, "grad": zeros(4, 16)}

DOORS = [
    ("attention", HEADS, {"query": zeros(2, 3, 20, 16).half()}, "key in float32: it takes float16"),
    ("attention", HEADS, {n: zeros(2, 3, 20, 16).double() for n in ("query", "key", "value")}, "for float64 does not exist"),
    ("attention", HEADS, {"value": zeros(2, 3, 19, 16)}, r"value of the shape \(2, 3, 19, 16\)"),
    ("attention", HEADS, {"key": zeros(1, 3, 20, 16)}, r"key of the shape \(1, 3, 20, 16\)"),
    ("attention", HEADS, {n: zeros(2, 3, 20, 8) for n in ("query", "key", "value")}, "heads 8 wide: it takes multiples of 16"),
    ("attention", HEADS, {"query": zeros(2, 3, 21, 16)}, "21 queries for 20 keys"),
    ("attention", HEADS, {"key": with_gaps(2, 3, 20, 16)}, "key with gaps in its last axis"),
    ("attention", HEADS, {n: zeros(2, 3, 0, 16) for n in ("query", "key", "value")}, "no keys"),
    ("attention_backward", BACKWARD, {"grad": zeros(2, 3, 20, 16).double()}, "grad in float64: it takes float32"),
    ("attention_backward", BACKWARD, {"out": zeros(2, 20, 3, 16)}, r"out of the shape \(2, 20, 3, 16\)"),
    ("attention_backward", BACKWARD, {"log_sums": zeros(2, 3, 19)}, r"log_sums of the shape \(2, 3, 19\)"),
    ("attention_backward", BACKWARD, {"log_sums": with_gaps(2, 3, 20)}, "log_sums with gaps"),
    ("norm", NORM, {"x": zeros(4, 16).half()}, "x in float16"),
    ("norm", NORM, {"x": zeros(4, 20), "weight": zeros(20)}, "x 20 wide: it takes multiples of 16"),
    ("norm", NORM, {"x": with_gaps(4, 16)}, "x with gaps"),
    ("norm", NORM, {"weight": zeros(16).half()}, "weight in float16"),
    ("norm", NORM, {"weight": zeros(15)}, r"weight of the shape \(15\): it takes \(16\)"),
    ("norm", NORM, {"out": zeros(3, 16)}, "out of another shape than x"),
    ("norm", NORM, {"out": zeros(4, 16).half()}, "for float16 does not exist"),
    ("norm_backward", NORM_BACKWARD, {"grad": zeros(5, 16)}, "grad of another shape than x"),
    ("norm_backward", NORM_BACKWARD, {"grad": zeros(4, 16).double()}, "for float64 does not exist"),
    ("norm_backward", NORM_BACKWARD, {"grad": with_gaps(4, 16)}, "grad with gaps"),
    ("quick_gelu", {"x": zeros(7)}, {"x": zeros(7).half()}, "for float16 does not exist"),
    ("quick_gelu", {"x": zeros(7)}, {"x": with_gaps(7)}, "x with gaps"),
    ("quick_gelu_backward", {"x": zeros(7), "grad": zeros(7)}, {"grad": zeros(6)}, "grad of another shape than x"),
    ("quick_gelu_backward", {"x": zeros(7), "grad": zeros(7)}, {"grad": zeros(7).half()}, "grad in float16: it takes"),
    ("quick_gelu_backward", {"x": zeros(7), "grad": zeros(7)}, {"grad": with_gaps(7)}, "grad with gaps"),
]  # fmt: skip


@pytest.mark.parametrize(("door", "right", "wrong", "message"), DOORS, ids=[f"{d[0]}-{i}" for i, d in enumerate(DOORS)])
def test_what_a_kernel_cannot_take_is_refused(door, right, wrong, message):
    """Before, short tensors were read beyond their end."""
    kernel = getattr(torch.ops.imagegpt, door)
    kernel(**right)
    with pytest.raises(RuntimeError, match=message) as error:
        kernel(**{**right, **wrong})
    assert str(error.value).splitlines()[0].startswith("imagegpt's kernel ")


def test_every_kernel_has_tests_of_its_door():
    known = {
        name.removeprefix("imagegpt::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("imagegpt::")
    }
    assert known == {door[0] for door in DOORS}


def test_activation_at_the_ends_of_float32():
    """There 1.702 x is infinite, and an exponential that ends at e^-87 times 1e38 is 1.6."""
    x = torch.tensor([3e38, -3e38, 1e38, -1e38])
    assert torch.equal(training.quick_gelu(x), torch.tensor([3e38, 0.0, 1e38, 0.0]))
    assert torch.equal(training.quick_gelu_backward(torch.ones(4), x), torch.tensor([1.0, 0.0, 1.0, 0.0]))


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
