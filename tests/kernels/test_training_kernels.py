"""The kernels for training, against the same sums in float64."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from imagegpt.kernels import training as kernels

pytestmark = pytest.mark.usefixtures("with_training_kernels")

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 6e-3}
PRECISIONS = [
    torch.float32,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(
            not torch.cpu._is_avx512_bf16_supported(), reason="this processor does not multiply pairs of bfloat16"
        ),
    ),
]


def distance(result, exact):
    return ((result.double() - exact).norm() / exact.norm().clamp(min=1e-12)).item()


def heads(batch, num, positions, width, dtype):
    """As a model has them: views of one tensor."""
    together = torch.randn(batch, positions, 3 * num * width).to(dtype)
    return [part.unflatten(-1, (num, width)).transpose(1, 2) for part in together.chunk(3, dim=-1)]


def exact_attention(query, key, value, scale, is_causal):
    return scaled_dot_product_attention(query, key, value, is_causal=is_causal, scale=scale).transpose(1, 2)


# Attention.


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize(
    ("batch", "num", "positions", "width"),
    [(2, 2, 256, 64), (1, 3, 77, 32), (3, 1, 130, 48), (1, 2, 20, 128), (2, 2, 64, 16)],
)
def test_attention_and_its_gradients(dtype, is_causal, batch, num, positions, width):
    torch.manual_seed(0)
    given = [tensor.requires_grad_() for tensor in heads(batch, num, positions, width, dtype)]
    grad = torch.randn(batch, positions, num, width).to(dtype)
    scale = width**-0.5
    out = kernels.attention(*given, scale, is_causal)
    assert out.dtype == dtype
    wide = [tensor.detach().double().requires_grad_() for tensor in given]
    exact = exact_attention(*wide, scale, is_causal)
    assert distance(out, exact) < TOLERANCE[dtype]
    grads = torch.autograd.grad(out, given, grad)
    for mine, of_wide in zip(grads, torch.autograd.grad(exact, wide, grad.double()), strict=True):
        assert mine.dtype == dtype
        assert distance(mine, of_wide) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_other_keys_than_queries(dtype):
    torch.manual_seed(0)
    query = torch.randn(2, 3, 70, 32).to(dtype).requires_grad_()
    key, value = (torch.randn(2, 3, 99, 32).to(dtype).requires_grad_() for _ in range(2))
    wide = [tensor.detach().double().requires_grad_() for tensor in (query, key, value)]
    out, exact = kernels.attention(query, key, value, 1.0, False), exact_attention(*wide, 1.0, False)
    assert distance(out, exact) < TOLERANCE[dtype]
    grad = torch.randn_like(exact).to(dtype)
    grads = torch.autograd.grad(out, (query, key, value), grad)
    for mine, of_wide in zip(grads, torch.autograd.grad(exact, wide, grad.double()), strict=True):
        assert distance(mine, of_wide) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_tensors_that_lie_otherwise(dtype):
    torch.manual_seed(0)
    query, key, value = (torch.randn(32, 20, 2, 1).to(dtype).permute(3, 2, 1, 0) for _ in range(3))  # gaps in a head
    out = kernels.attention(query, key, value, 1.0, True)
    assert distance(out, exact_attention(query.double(), key.double(), value.double(), 1.0, True)) < TOLERANCE[dtype]
    odd = torch.randn(1, 1, 20, 33).to(dtype)[..., 1:]  # pairs would begin in the middle of a word
    out = kernels.attention(odd, odd, odd, 1.0, True)
    assert distance(out, exact_attention(odd.double(), odd.double(), odd.double(), 1.0, True)) < TOLERANCE[dtype]


def test_what_one_query_sees_of_itself_alone_has_no_gradient():
    query, key, value = (tensor.requires_grad_() for tensor in heads(1, 1, 1, 16, torch.float32))
    out = kernels.attention(query, key, value, 1.0, True)
    assert torch.equal(out[0, 0, 0], value[0, 0, 0])
    grads = torch.autograd.grad(out, (query, key, value), torch.ones_like(out))
    assert [grad.abs().max().item() < 1e-5 for grad in grads[:2]] == [True, True]
    assert torch.equal(grads[2], torch.ones_like(value))


def test_scores_beyond_what_the_exponential_can_hold():
    torch.manual_seed(0)
    given = [200 * tensor for tensor in heads(1, 1, 70, 16, torch.float32)]
    wide = [tensor.double() for tensor in given]
    assert distance(kernels.attention(*given, 1.0, True), exact_attention(*wide, 1.0, True)) < 1e-4


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_what_is_no_number_is_seen_by_those_who_look(dtype):
    query, key, value = heads(1, 1, 70, 16, dtype)
    key[0, 0, 66, 3] = torch.nan
    tensors = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
    out = kernels.attention(*tensors, 1.0, True)
    assert out[0, :66].isfinite().all()
    assert out[0, 66:].isnan().all()
    grads = torch.autograd.grad(out, tensors, torch.ones_like(out))
    assert all(grad.isnan().any() for grad in grads)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_threads_do_not_change_a_bit(dtype):
    torch.manual_seed(0)
    given = [tensor.requires_grad_() for tensor in heads(2, 3, 100, 32, dtype)]
    x, weight = torch.randn(500, 64, requires_grad=True), torch.randn(64, requires_grad=True)

    def results():
        out = kernels.attention(*given, 0.3, True)
        grads = torch.autograd.grad(out, given, torch.ones_like(out))
        return [out, *grads, *kernels.norm_backward(torch.ones(500, 64), x.detach(), weight.detach(), 1e-5)]

    alone = results()
    try:
        torch.set_num_threads(3)
        together = results()
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_torch_knows_shapes_and_gradient(dtype):
    given = [tensor.requires_grad_() for tensor in heads(1, 2, 20, 16, dtype)]
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.imagegpt.attention.default, (*given, 0.5, True), test_utils=tests)


def test_for_what_there_is_no_kernel(monkeypatch):
    def can(*shape, dtype=torch.float32, device="cpu"):
        return kernels.can_attend(*(torch.zeros(shape, dtype=dtype, device=device) for _ in range(3)))

    assert can(1, 2, 3, 16)
    assert not can(1, 2, 3, 8)
    assert not can(0, 2, 3, 16)
    assert not can(1, 2, 3, 16, dtype=torch.float16)
    assert not can(1, 2, 3, 16, device="meta")
    query = torch.zeros(1, 2, 3, 16)
    assert not kernels.can_attend(query, query.double(), query)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert can(1, 2, 3, 16, dtype=torch.bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert not can(1, 2, 3, 16, dtype=torch.bfloat16)
    assert can(1, 2, 3, 16)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert not kernels.can_activate(torch.zeros(4, dtype=torch.bfloat16))
    assert kernels.can_activate(torch.zeros(4))
    assert not kernels.can_normalise(torch.zeros(4, 16), torch.zeros(16), torch.bfloat16)
    assert kernels.can_normalise(torch.zeros(4, 16), torch.zeros(16), torch.float32)
    assert not kernels.can_normalise(torch.zeros(4, 15), torch.zeros(15), torch.float32)


# Norm and activation.


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("shape", [(3, 77, 64), (1, 16), (400, 48)])
def test_norm_and_its_gradients(dtype, shape):
    torch.manual_seed(0)
    x, weight = (5 * torch.randn(shape)).requires_grad_(), torch.randn(shape[-1], requires_grad=True)
    grad = torch.randn(shape).to(dtype)
    wide = x.double()
    exact = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-2) * weight.double()
    out = kernels.norm(x.detach(), weight.detach(), 1e-2, dtype)
    assert out.dtype == dtype
    assert distance(out, exact) < TOLERANCE[dtype]
    grads = kernels.norm_backward(grad, x.detach(), weight.detach(), 1e-2)
    for mine, of_wide in zip(grads, torch.autograd.grad(exact, (x, weight), grad.double()), strict=True):
        assert mine.dtype == torch.float32
        assert distance(mine, of_wide.double()) < 2e-6


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("count", [1, 16, 1000, 40_003])
def test_activation_and_its_gradient(dtype, count):
    torch.manual_seed(0)
    x, grad = (5 * torch.randn(count)).to(dtype), torch.randn(count).to(dtype)
    wide = x.double().requires_grad_()
    exact = wide * torch.sigmoid(1.702 * wide)
    assert distance(kernels.quick_gelu(x), exact) < TOLERANCE[dtype]
    of_wide = torch.autograd.grad(exact, wide, grad.double())[0]
    assert distance(kernels.quick_gelu_backward(grad, x), of_wide) < TOLERANCE[dtype]


def test_activation_of_large_numbers_and_of_none():
    x = torch.tensor([1e30, -1e30, 0.0, torch.nan, -90.0, 90.0])
    out = kernels.quick_gelu(x)
    assert torch.equal(out[[0, 2, 5]], x[[0, 2, 5]])
    assert out[[1, 4]].abs().max() < 1e-6
    assert out[3].isnan()
    grad = kernels.quick_gelu_backward(torch.ones(6), x)
    torch.testing.assert_close(grad[[0, 1, 2, 4, 5]], torch.tensor([1.0, 0.0, 0.5, 0.0, 1.0]))
    assert grad[3].isnan()


# Other processors.


def test_training_kernels_for_other_processors(run_for_processor):
    """The tests above, in float32."""
    without_bfloat16 = "    torch.cpu._is_avx512_bf16_supported = lambda: False\n"
    run_for_processor(__file__, "not no_kernel", without_bfloat16)
