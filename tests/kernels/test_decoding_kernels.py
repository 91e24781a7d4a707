"""The kernels in C++, against the same sums in float64."""

import pytest
import torch

from imagegpt.kernels import decoding as kernels

pytestmark = pytest.mark.usefixtures("with_kernels")


def weights(precision, num_outputs, width):
    if precision == torch.int8:
        return torch.randint(-127, 128, (num_outputs, width)).to(torch.int8), torch.rand(num_outputs) + 0.1
    return torch.randn(num_outputs, width).to(precision), None


def error(out, expected):
    return ((out - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize(("num_outputs", "width"), [(1, 2), (31, 64), (32, 16), (65, 48), (200, 514)])
@pytest.mark.parametrize("num_rows", [*range(16), 17, 28, 40])
def test_products(precision, num_outputs, width, num_rows):
    rows, scale = weights(precision, num_outputs, width)
    x = torch.randn(num_rows, width).to(torch.bfloat16).float()  # which no kernel rounds
    out = kernels.tiled_linear(x, kernels.tiled(rows), scale, num_outputs)
    expected = x.double() @ rows.double().t() * (1 if scale is None else scale.double())
    assert out.shape == (num_rows, num_outputs)
    assert not num_rows or error(out, expected) < 1e-6


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.int8], ids=str)
def test_inputs_are_rounded_to_bfloat16_at_most(precision):
    rows, scale = weights(precision, 64, 256)
    x = torch.randn(4, 256)
    out = kernels.tiled_linear(x, kernels.tiled(rows), scale, 64)
    factor = 1 if scale is None else scale.double()
    exact = x.double() @ rows.double().t() * factor
    rounded = x.bfloat16().double() @ rows.double().t() * factor
    assert min(error(out, exact), error(out, rounded)) < 1e-6


def test_inputs_are_rounded_as_torch_rounds_them():
    """Halves to even; and a number that is none stays none, whatever its bits."""
    halves = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1 + 2**-8 + 2**-20, 3e38, 1e-40, 0.0, -0.0]).repeat(2)
    rows = torch.eye(16, dtype=torch.bfloat16)
    out = kernels.tiled_linear(halves.unsqueeze(0), kernels.tiled(rows), None, 16)[0]
    assert torch.equal(out, halves) or torch.equal(out[:5], halves.bfloat16().float()[:5])
    nan = torch.tensor([0x7FFFFFFF] * 2, dtype=torch.int32).view(torch.float32)
    assert kernels.tiled_linear(nan.unsqueeze(0), kernels.tiled(torch.ones(3, 2).bfloat16()), None, 3).isnan().all()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_a_product_does_not_depend_on_the_others_nor_on_threads(precision):
    rows, scale = weights(precision, 500, 300)
    tiled, x = kernels.tiled(rows), torch.randn(21, 300)
    together = kernels.tiled_linear(x, tiled, scale, 500)
    alone = torch.cat([kernels.tiled_linear(x[i : i + 1], tiled, scale, 500) for i in range(21)])
    assert torch.equal(together, alone)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert torch.equal(together, kernels.tiled_linear(x, tiled, scale, 500))
    finally:
        torch.set_num_threads(threads)


def test_inputs_that_are_views():
    rows, _ = weights(torch.float32, 40, 16)
    x = torch.randn(16, 6).t()
    torch.testing.assert_close(kernels.tiled_linear(x, kernels.tiled(rows), None, 40), x @ rows.t())


def attention_in_float64(query, keys, values, lengths, shared_keys=None, shared_values=None):
    batch, heads, queries, _ = query.shape
    out = torch.empty(batch, queries, heads, query.shape[3], dtype=torch.float64)
    for image in range(batch):
        for n in range(queries):
            own_keys, own_values = keys[image, :, : lengths[image, n]], values[image, :, : lengths[image, n]]
            if shared_keys is not None:
                prompt = image // (batch // len(shared_keys))
                own_keys = torch.cat([shared_keys[prompt], own_keys], dim=1)
                own_values = torch.cat([shared_values[prompt], own_values], dim=1)
            scores = (own_keys.double() @ query[image, :, n].double().unsqueeze(-1)).squeeze(-1)
            out[image, n] = (scores.softmax(-1).unsqueeze(1) @ own_values.double()).squeeze(1)
    return out


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [16, 32, 48, 64, 128, 192])
@pytest.mark.parametrize(("batch", "queries", "prompts", "num_shared"), [(1, 1, 0, 0), (3, 4, 0, 0), (6, 2, 2, 21)])
def test_attention(cache_dtype, width, batch, queries, prompts, num_shared):
    """Keys and values are parts of a larger cache; scores are as large as 30."""
    query = torch.randn(batch, queries, 3, width).transpose(1, 2) * 40 / width
    room = torch.randn(2, batch, 3, 128, width).to(cache_dtype)
    keys, values = room[0][:, :, :100], room[1][:, :, :100]
    lengths = torch.randint(1, 101, (batch, queries))
    lengths[0, 0], lengths[-1, -1] = 1, 100
    past = tuple(torch.randn(2, prompts, 3, num_shared, width).to(cache_dtype)) if prompts else (None, None)
    out = kernels.cached_attention(query, keys, values, lengths, *past)
    assert out.shape == (batch, queries, 3, width)
    assert error(out, attention_in_float64(query, keys, values, lengths, *past)) < 1e-6


def restored(vectors):
    """What `quantized` vectors stand for."""
    return vectors[..., :-4].double() * vectors[..., -4:].contiguous().view(torch.float32).double()


@pytest.mark.parametrize("shape", [(16,), (3, 64), (2, 3, 5, 48), (0, 16)])
def test_vectors_of_int8_are_the_nearest_of_255_steps(shape):
    rows = torch.randn(shape) * 10 ** torch.randn((*shape[:-1], 1))
    vectors = kernels.quantized(rows)
    assert vectors.shape == (*shape[:-1], shape[-1] + 4)
    largest = rows.abs().amax(dim=-1, keepdim=True)
    assert ((restored(vectors) - rows).abs() <= largest / 127 / 2 * 1.0001).all()
    assert not rows.numel() or vectors[..., :-4].abs().amax() == 127


def test_vectors_of_int8_from_a_view():
    rows = torch.randn(16, 6).t()
    assert torch.equal(kernels.quantized(rows), kernels.quantized(rows.contiguous()))


def test_vectors_of_zeros_and_of_what_is_no_number():
    assert not kernels.quantized(torch.zeros(2, 16))[:, :-4].any()
    rows = torch.ones(2, 16)
    rows[0, 3] = torch.inf
    assert restored(kernels.quantized(rows))[0].isnan().all()
    assert torch.equal(restored(kernels.quantized(rows))[1].float(), rows[1])


@pytest.mark.parametrize("width", [16, 64, 192])
@pytest.mark.parametrize("prompts", [0, 2])
def test_attention_over_int8(width, prompts):
    query = torch.randn(4, 3, 2, width) * 5 / width**0.5
    keys, values = (kernels.quantized(torch.randn(4, 3, 128, width))[:, :, :100] for _ in range(2))
    lengths = torch.randint(1, 101, (4, 2))
    past = [kernels.quantized(torch.randn(prompts, 3, 21, width)) for _ in range(2)] if prompts else [None, None]
    out = kernels.cached_attention(query, keys, values, lengths, *past)
    exact = [None if vectors is None else restored(vectors) for vectors in (keys, values, *past)]
    expected = attention_in_float64(query, exact[0], exact[1], lengths, *exact[2:])
    assert error(out, expected) < 1e-6


def test_what_is_beyond_the_length_does_not_matter():
    query, room = torch.randn(1, 2, 1, 16), torch.randn(2, 1, 2, 64, 16)
    lengths = torch.tensor([[37]])
    before = kernels.cached_attention(query, room[0], room[1], lengths, None, None)
    room[:, :, :, 37:] = torch.nan
    assert torch.equal(kernels.cached_attention(query, room[0], room[1], lengths, None, None), before)


def test_very_unlike_scores():
    """The exponential must not leave its range: weights far below the largest count nothing."""
    keys = torch.zeros(1, 1, 64, 16)
    keys[..., 0] = torch.linspace(-1e4, 1e4, 64)
    values = torch.randn(1, 1, 64, 16)
    query = torch.zeros(1, 1, 1, 16)
    query[..., 0] = 1
    out = kernels.cached_attention(query, keys, values, torch.tensor([[64]]), None, None)
    torch.testing.assert_close(out[0, 0, 0], values[0, 0, -1])


@pytest.mark.parametrize("where", ["query", "keys", "values"])
def test_what_is_no_number_stays_none(where):
    tensors = {
        "query": torch.randn(1, 1, 1, 16),
        "keys": torch.randn(1, 1, 64, 16),
        "values": torch.randn(1, 1, 64, 16),
    }
    tensors[where][0, 0, 0, 3] = torch.nan
    assert (
        kernels.cached_attention(**tensors, lengths=torch.tensor([[9]]), shared_keys=None, shared_values=None)
        .isnan()
        .any()
    )
    x, rows = torch.randn(2, 16), torch.randn(8, 16)
    x[0, 0] = torch.nan
    for precision in (torch.float32, torch.bfloat16):
        out = kernels.tiled_linear(x, kernels.tiled(rows.to(precision)), None, 8)
        assert out[0].isnan().all()
        assert not out[1].isnan().any()


def test_what_the_kernels_do_not_know():
    assert not kernels.can_tile(torch.zeros(4, 3))
    assert not kernels.can_tile(torch.zeros(4, 2, dtype=torch.float64))
    cpu = torch.device("cpu")
    assert kernels.can_attend(16, torch.int8, cpu)
    assert not kernels.can_attend(8, torch.float32, cpu)
    assert not kernels.can_attend(16, torch.float16, cpu)
    assert not kernels.can_attend(16, torch.float32, torch.device("meta"))


# Other processors.


def test_kernels_for_other_processors(run_for_processor):
    """The tests above."""
    chosen = "product or products or inputs or attention or vectors or unlike or beyond or number"
    assert "skipped" not in run_for_processor(__file__, chosen)
