"""The attention kernels against attention in float64."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from imagegpt.kernels import attention as kernels

pytestmark = pytest.mark.usefixtures("with_training_kernels")

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 6e-3}
PRECISIONS = [
    torch.float32,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="this CPU has no AVX-512 BF16"),
    ),
]


def distance(result, exact):
    return ((result.double() - exact).norm() / exact.norm().clamp(min=1e-12)).item()


def heads(batch, num, positions, width, dtype):
    """Query, key and value as in a model: views of one tensor."""
    together = torch.randn(batch, positions, 3 * num * width).to(dtype)
    return [part.unflatten(-1, (num, width)).transpose(1, 2) for part in together.chunk(3, dim=-1)]


def exact_attention(query, key, value, scale, is_causal):
    return scaled_dot_product_attention(query, key, value, is_causal=is_causal, scale=scale).transpose(1, 2)


def assert_exact(query, key, value, scale, is_causal, grad):
    """Attention and its gradients are those of float64, up to rounding."""
    dtype = query.dtype
    given = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
    wide = [tensor.detach().double().requires_grad_() for tensor in given]
    out, exact = kernels.attention(*given, scale, is_causal), exact_attention(*wide, scale, is_causal)
    grads, exact_grads = torch.autograd.grad(out, given, grad), torch.autograd.grad(exact, wide, grad.double())
    for mine, of_wide in zip((out, *grads), (exact, *exact_grads), strict=True):
        assert mine.dtype == dtype
        assert distance(mine, of_wide) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize(
    ("batch", "num", "positions", "width"),
    [(2, 2, 256, 64), (1, 3, 77, 32), (3, 1, 130, 48), (1, 2, 20, 128), (2, 2, 64, 16)],
)
def test_attention_and_its_gradients(dtype, is_causal, batch, num, positions, width):
    grad = torch.randn(batch, positions, num, width).to(dtype)
    assert_exact(*heads(batch, num, positions, width, dtype), width**-0.5, is_causal, grad)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("is_causal", [True, False])
def test_more_keys_than_queries(dtype, is_causal):
    query, key, value = (torch.randn(2, 3, positions, 32).to(dtype) for positions in (70, 99, 99))
    assert_exact(query, key, value, 0.2, is_causal, torch.randn(2, 70, 3, 32).to(dtype))


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_any_strides(dtype):
    transposed = [torch.randn(32, 20, 2, 1).to(dtype).permute(3, 2, 1, 0) for _ in range(4)]
    assert_exact(*transposed[:3], 0.2, True, transposed[3].transpose(1, 2))
    odd = [torch.randn(1, 1, 20, 33).to(dtype)[..., 1:] for _ in range(4)]  # pairs are not aligned
    assert_exact(*odd[:3], 0.2, True, odd[3].transpose(1, 2))
    expanded = [torch.randn(1, 1, 20, 32).to(dtype).expand(2, 3, 20, 32) for _ in range(4)]
    assert_exact(*expanded[:3], 0.2, True, expanded[3].transpose(1, 2))


def test_a_single_position_has_no_gradient_for_query_and_key():
    query, key, value = (tensor.requires_grad_() for tensor in heads(1, 1, 1, 16, torch.float32))
    out = kernels.attention(query, key, value, 1.0, True)
    assert torch.equal(out[0, 0, 0], value[0, 0, 0])
    grads = torch.autograd.grad(out, (query, key, value), torch.ones_like(out))
    assert [grad.abs().max().item() < 1e-5 for grad in grads[:2]] == [True, True]
    assert torch.equal(grads[2], torch.ones_like(value))


def test_scores_beyond_the_range_of_the_exponential():
    given = [200 * tensor for tensor in heads(1, 1, 70, 16, torch.float32)]
    wide = [tensor.double() for tensor in given]
    assert distance(kernels.attention(*given, 1.0, True), exact_attention(*wide, 1.0, True)) < 1e-4


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_nan_reaches_only_the_queries_that_attend_to_it(dtype):
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
    given = [tensor.requires_grad_() for tensor in heads(2, 3, 100, 32, dtype)]

    def results():
        out = kernels.attention(*given, 0.3, True)
        return [out, *torch.autograd.grad(out, given, torch.ones_like(out))]

    alone = results()
    try:
        torch.set_num_threads(3)
        together = results()
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_the_operators_pass_opcheck(dtype):
    """Schema, fake kernels and gradient, as torch.compile and export need them."""
    query, key, value = given = [tensor.requires_grad_() for tensor in heads(1, 2, 20, 16, dtype)]
    torch.library.opcheck(torch.ops.imagegpt.attention, (*given, 0.5, True))
    out, logsumexp = torch.ops.imagegpt.attention(*given, 0.5, True)
    saved = [tensor.detach() for tensor in (torch.randn_like(out), query, key, value, out, logsumexp)]
    torch.library.opcheck(torch.ops.imagegpt.attention_backward, (*saved, 0.5, True))


def test_second_gradients():
    given = [tensor.requires_grad_() for tensor in heads(1, 2, 5, 16, torch.float32)]
    wide = [tensor.detach().double().requires_grad_() for tensor in given]
    seconds = []
    with sdpa_kernel(SDPBackend.MATH):  # the other backends have no second gradients
        exact = exact_attention(*wide, 0.5, True)
    for tensors, out in ((given, kernels.attention(*given, 0.5, True)), (wide, exact)):
        firsts = torch.autograd.grad(out.sin().sum(), tensors, create_graph=True)
        seconds.append(torch.autograd.grad(sum(first.square().sum() for first in firsts), tensors))
    for mine, of_wide in zip(*seconds, strict=True):
        assert distance(mine, of_wide) < 1e-5


IN_A_NEW_PROCESS = """
import os, threading, torch
from imagegpt.kernels import attention
assert not attention.is_loaded() and torch.ops.imagegpt.attention.default  # registered before anything is compiled
torch.set_num_threads(1)
x = torch.randn(2, 3, 70, 16, requires_grad=True)
gradients = []
def compute():
    gradients.append(torch.autograd.grad(attention.attention(x, x, x, 1.0, True).square().sum(), x)[0])
threads = [threading.Thread(target=compute) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
child = os.fork()
if not child:
    compute()
assert len(gradients) == (4 if child else 5) and all(torch.equal(gradients[0], other) for other in gradients)
if not child:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0 and attention.is_loaded()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_several_threads_load_the_kernels_and_a_fork_has_them():
    done = subprocess.run([sys.executable, "-c", IN_A_NEW_PROCESS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("function", ["imagegpt_attention", "imagegpt_attention_backward"])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_too_little_memory_is_an_error(function, num_threads):
    """Regression: with several threads the exception left the parallel region and ended the process."""
    call = kernels.AttentionStruct(1, 4, 2, 2**50, 16, num_threads)
    with pytest.raises(MemoryError, match=f"not enough memory for attention of 2 queries to {2**50} keys"):
        kernels._call(function, call)


def test_is_supported(monkeypatch):
    def can(*shape, dtype=torch.float32, device="cpu"):
        return kernels.is_supported(*(torch.zeros(shape, dtype=dtype, device=device) for _ in range(3)))

    assert can(1, 2, 3, 16)
    assert not can(1, 2, 3, 8)
    assert not can(0, 2, 3, 16)
    assert not can(1, 2, 3, 16, dtype=torch.float16)
    assert not can(1, 2, 3, 16, device="meta")
    query = torch.zeros(1, 2, 3, 16)
    assert not kernels.is_supported(query, query.double(), query)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert can(1, 2, 3, 16, dtype=torch.bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert not can(1, 2, 3, 16, dtype=torch.bfloat16)
    assert can(1, 2, 3, 16)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)


@pytest.mark.slow  # each compiles all kernels
def test_attention_kernels_for_other_processors(run_for_processor):
    """The tests above, in float32."""
    without_bfloat16 = "    torch.cpu._is_avx512_bf16_supported = lambda: False\n"
    run_for_processor(__file__, "not is_supported and not several_threads and not operators", without_bfloat16)
