"""What rounded weights, keys and values cost: nats per pixel on the test images of the bundled digits."""

import pytest
import torch
from torch.nn import functional

from imagegpt import ImageGPTPipeline
from imagegpt.data.digits import load_digits
from imagegpt.evaluation.likelihood import mean_nll
from imagegpt.sampling import Sampler
from imagegpt.sampling.cache import StaticCache
from imagegpt.sampling.compilation import Compiler
from imagegpt.sampling.decoder import Decoder
from imagegpt.sampling.projections import FrozenProjection, freeze, is_exact, lay_out


@pytest.fixture(scope="module")
def model():
    return ImageGPTPipeline.from_pretrained("digits", device="cpu").model


@pytest.fixture(scope="module")
def images():
    return load_digits().test.ids


@pytest.fixture(scope="module")
def exact(model, images):
    return mean_nll(model, images)


class KernelsOnly(Compiler):
    """Compiles no block."""

    def has_kernels(self, device):
        return True

    def runner(self, *_):
        return None


def decoded_nll(model, images, precision, cache_dtype, num_fed, compiler=None):
    """Of the logits that sampling draws from, when it draws these images."""
    frozen = freeze(model, precision, in_place=False)
    decoder = Decoder(frozen, StaticCache(frozen, len(images), cache_dtype), compiler)
    num_pixels = images.shape[1]
    fed = functional.pad(images[:, :-1], (1, 0), value=model.config.sos_token_id)
    with torch.inference_mode():
        logits = [
            decoder.feed(fed[:, window], window.expand(len(images), -1), decoder.cache.rounded(num_pixels))
            for window in torch.arange(num_pixels).split(num_fed)
        ]
        by_class = torch.cat(logits, dim=1).double().transpose(1, 2)
        return float(functional.cross_entropy(by_class, images))


@pytest.mark.parametrize(("precision", "most"), [("float32", 1e-6), ("bfloat16", 0.002), ("int8", 0.01)])
def test_rounded_weights_cost_little(model, images, exact, precision, most):
    cost = mean_nll(freeze(model, precision, in_place=False), images) - exact
    assert abs(cost) <= most


@pytest.mark.parametrize("num_fed", [64, 16, 1])
@pytest.mark.parametrize(
    ("precision", "cache_dtype", "most"),
    [
        ("float32", torch.float32, 1e-6),
        ("float32", torch.bfloat16, 0.001),
        ("bfloat16", torch.bfloat16, 0.002),
        ("int8", torch.bfloat16, 0.01),
    ],
)
def test_rounded_keys_and_values_cost_little(model, images, exact, precision, cache_dtype, most, num_fed):
    """However many positions are fed at a time, which decides torch's kernels."""
    cost = decoded_nll(model, images, precision, cache_dtype, num_fed) - exact
    assert abs(cost) <= most


@pytest.mark.parametrize("num_fed", [16, 1])
@pytest.mark.parametrize(
    ("precision", "cache_dtype", "most"),
    [
        ("float32", torch.float32, 1e-6),
        ("float32", torch.int8, 0.001),
        ("bfloat16", torch.bfloat16, 0.002),
        ("int8", torch.int8, 0.01),
    ],
)
def test_rounding_costs_little_with_our_kernels(
    model, images, exact, precision, cache_dtype, most, num_fed, with_kernels
):
    cost = decoded_nll(model, images, precision, cache_dtype, num_fed, KernelsOnly()) - exact
    assert abs(cost) <= most


def test_the_sampler_keeps_keys_in_int8_where_the_kernels_read_them(model, tiny_model, with_kernels, monkeypatch):
    dtypes = []
    made = lambda model, num, dtype, *rest: dtypes.append(dtype) or StaticCache(model, num, dtype, *rest)  # noqa: E731
    monkeypatch.setattr("imagegpt.sampling.engine.StaticCache", made)
    for options in ({}, {"compile": False}):
        sampler = Sampler(model, precision="int8", **options)
        sampler.generate(seeds=[1], num_pixels=2)
        assert sampler.bytes_per_image == 64 * (2 * 4 * 4 * ((16 + 4) if not options else 2 * 16) + 17 * 4 + 8)
    Sampler(tiny_model, precision="int8").generate(seeds=[1], num_pixels=2)  # heads of 8, which they do not know
    assert dtypes == [torch.int8, torch.bfloat16, torch.bfloat16]


def test_a_model_that_was_frozen_before_is_frozen_anew(model, images, exact, with_kernels):
    """The precision was once ignored for the model of a pipeline."""
    for layout in ("rows", "tiles", "rows"):
        lay_out(model, layout)
        before = model.transformer.h[0].mlp.c_fc
        sampler = Sampler(model, precision="int8")
        assert sampler.model.transformer.h[0].mlp.c_fc.weight.dtype == torch.int8
        assert not is_exact(sampler.model)
        assert type(before) is FrozenProjection
        again = freeze(freeze(sampler.model, "float32", in_place=False), None, in_place=False)
        assert again.transformer.h[0].mlp.c_fc.weight.dtype == torch.float32
        assert not is_exact(again), "what was rounded stays rounded"
        assert mean_nll(again, images) == pytest.approx(mean_nll(sampler.model, images), abs=1e-4)
        assert mean_nll(freeze(model, None, in_place=False), images) == pytest.approx(exact, abs=1e-6)
        assert is_exact(model)


def test_the_bounds_would_notice_a_coarser_rounding(model, images, exact):
    """Weights of three bits cost more than is allowed for eight."""
    coarse = freeze(model, "float32", in_place=False)
    with torch.no_grad():
        for block in coarse.transformer.h:
            for projection in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
                projection.lay_out("rows")
                step = projection.weight.abs().amax(dim=1, keepdim=True) / 3
                projection.weight.copy_((projection.weight / step).round() * step)
    assert mean_nll(coarse, images) - exact > 0.01
