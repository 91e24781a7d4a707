"""What a kernel cannot take is refused in a sentence, and its memory is not read."""

# ruff: noqa: E501 - a table

import pytest
import torch

from imagegpt.kernels import decoding, training

pytestmark = pytest.mark.usefixtures("with_kernels", "with_training_kernels")


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


def with_gaps(*shape):
    return torch.zeros(*shape[:-1], 2 * shape[-1])[..., ::2]


def whole(*shape):
    return torch.ones(shape, dtype=torch.int64)


CACHE = {
    "query": zeros(2, 3, 1, 16), "keys": zeros(2, 3, 64, 16), "values": zeros(2, 3, 64, 16), "lengths": whole(2, 1),
    "shared_keys": None, "shared_values": None,
}  # fmt: skip
HEADS = {name: zeros(2, 3, 20, 16) for name in ("query", "key", "value")} | {"scale": 1.0, "is_causal": True}
BACKWARD = {**HEADS, "grad": zeros(2, 3, 20, 16), "out": zeros(2, 3, 20, 16), "log_sums": zeros(2, 3, 20)}
NORM = {"x": zeros(4, 16), "weight": zeros(16), "eps": 1e-5, "out": zeros(4, 16)}
NORM_BACKWARD = {"x": zeros(4, 16), "weight": zeros(16), "eps": 1e-5, "grad": zeros(4, 16)}
GUESSES = {"scores": zeros(2, 3, 9), "fed": whole(2, 3), "positions": whole(2, 3), "influence": zeros(9, 9)}
PRODUCT = {"x": zeros(2, 8), "weight": zeros(1, 8, 32), "scale": None, "num_outputs": 20}

DOORS = [
    ("tiled_linear", PRODUCT, {"x": zeros(2, 8).half()}, "x in float16: it takes float32"),
    ("tiled_linear", PRODUCT, {"x": zeros(2, 2, 8)}, r"x of the shape \(2, 2, 8\): it takes \(any, any\)"),
    ("tiled_linear", PRODUCT, {"weight": zeros(1, 8, 32).half()}, "weight in float16: it takes float32 or bfloat16"),
    ("tiled_linear", PRODUCT, {"weight": zeros(1, 8, 32).double()}, "weight in float64: it takes"),
    ("tiled_linear", PRODUCT, {"weight": zeros(1, 8, 32).bfloat16()}, r"weight .*it takes \(1, 4, 32, 2\)"),
    ("tiled_linear", PRODUCT, {"weight": zeros(1, 4, 32, 2)}, r"weight of the shape .*it takes \(1, 8, 32\)"),
    ("tiled_linear", PRODUCT, {"weight": with_gaps(1, 8, 32)}, "weight with gaps or in another order"),
    ("tiled_linear", PRODUCT, {"num_outputs": 33}, r"weight of the shape \(1, 8, 32\): it takes \(2, 8, 32\)"),
    ("tiled_linear", PRODUCT, {"num_outputs": 0}, "asked for 0 outputs"),
    ("tiled_linear", PRODUCT, {"scale": zeros(20).half()}, "scale in float16: it takes float32"),
    ("tiled_linear", PRODUCT, {"scale": zeros(19)}, r"scale of the shape \(19\): it takes \(20\)"),
    ("tiled_linear", PRODUCT, {"scale": with_gaps(20)}, "scale with gaps"),
    ("cached_attention", CACHE, {"query": zeros(2, 3, 1, 16).double()}, "query in float64: it takes float32"),
    ("cached_attention", CACHE, {"query": zeros(2, 3, 16)}, r"query of the shape \(2, 3, 16\)"),
    ("cached_attention", CACHE, {"query": with_gaps(2, 3, 1, 16)}, "query with gaps in its last axis"),
    ("cached_attention", CACHE, {n: zeros(2, 3, 9, 24) for n in ("query", "keys", "values")}, "heads 24 wide"),
    ("cached_attention", CACHE, {n: zeros(2, 3, 9, 144) for n in ("query", "keys", "values")} | {"query": zeros(2, 3, 1, 144)}, "no loops for heads 144 wide"),
    ("cached_attention", CACHE, {"keys": zeros(2, 3, 64, 16).half()}, "keys in float16: it takes float32 or bfloat16"),
    ("cached_attention", CACHE, {"values": zeros(2, 3, 64, 16).bfloat16()}, "values in bfloat16: it takes float32"),
    ("cached_attention", CACHE, {"values": zeros(2, 3, 63, 16)}, r"values of the shape \(2, 3, 63, 16\)"),
    ("cached_attention", CACHE, {n: zeros(2, 3, 9, 16, dtype=torch.int8) for n in ("keys", "values")}, r"\(2, 3, any, 20\)"),
    ("cached_attention", CACHE, {"keys": zeros(2, 1, 64, 16)}, r"keys of the shape \(2, 1, 64, 16\)"),
    ("cached_attention", CACHE, {"keys": with_gaps(2, 3, 64, 16)}, "keys with gaps in its last axis"),
    ("cached_attention", CACHE, {"lengths": whole(2, 1).int()}, "lengths in int32: it takes int64"),
    ("cached_attention", CACHE, {"lengths": whole(2)}, r"lengths of the shape \(2\): it takes \(2, 1\)"),
    ("cached_attention", CACHE, {"lengths": 65 * whole(2, 1)}, "the length 65: it takes 1 to 64"),
    ("cached_attention", CACHE, {"lengths": 0 * whole(2, 1)}, "the length 0: it takes 1 to 64"),
    ("cached_attention", CACHE, {"shared_keys": zeros(1, 3, 4, 16)}, "it takes both or none"),
    ("cached_attention", CACHE, {n: zeros(3, 3, 4, 16) for n in ("shared_keys", "shared_values")}, "3 prompts for 2 images"),
    ("cached_attention", CACHE, {"shared_keys": zeros(1, 3, 4, 16), "shared_values": zeros(1, 3, 5, 16)}, "shared_values of the"),
    ("quantized_rows", {"x": zeros(2, 8)}, {"x": zeros(2, 8).half()}, "x in float16: it takes float32"),
    ("quantized_rows", {"x": zeros(2, 8)}, {"x": zeros()}, "x without axes"),
    ("redrawn", GUESSES, {"scores": zeros(2, 3, 9).bfloat16()}, "scores in bfloat16"),
    ("redrawn", GUESSES, {"fed": whole(2, 3).int()}, "fed in int32: it takes int64"),
    ("redrawn", GUESSES, {"fed": 9 * whole(2, 3)}, "the colour 9: it takes 0 to 8"),
    ("redrawn", GUESSES, {"positions": whole(2, 2)}, r"positions of the shape \(2, 2\): it takes \(2, 3\)"),
    ("redrawn", GUESSES, {"influence": zeros(8, 9)}, r"influence of the shape \(8, 9\): it takes \(9, 9\)"),
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
    """Before, weights in float16 were read as bfloat16, and short tensors beyond their end."""
    kernel = getattr(torch.ops.imagegpt, door)
    kernel(**right)
    with pytest.raises(RuntimeError, match=message) as error:
        kernel(**{**right, **wrong})
    assert str(error.value).splitlines()[0].startswith("imagegpt's kernel ")


def test_the_start_token_may_be_fed_first():
    fed = torch.tensor([[9, 3, 4], [0, 1, 2]])
    drawn = decoding.redrawn(torch.randn(2, 3, 9), fed, torch.arange(3).expand(2, 3), torch.randn(9, 9))
    assert drawn.shape == (2, 3)


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
