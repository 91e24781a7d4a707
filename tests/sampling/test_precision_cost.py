"""The cost of rounded weights, keys and values: nats per pixel on the test images of the bundled digits."""

import pytest
import torch
from torch.nn import functional

from helpers import digit_ids
from imagegpt import ImageGPTPipeline
from imagegpt.evaluation.likelihood import mean_nll
from imagegpt.sampling import ExecutionPlan, Sampler
from imagegpt.sampling.packed_linear import PackedLinear, is_lossless, prepare_model
from imagegpt.sampling.weight_formats import choose_format


@pytest.fixture(scope="module")
def model():
    return ImageGPTPipeline.from_pretrained("digits", device="cpu").model


@pytest.fixture(scope="module")
def images():
    return digit_ids("test")


@pytest.fixture(scope="module")
def exact(model, images):
    return mean_nll(model, images)


def decoded_nll(model, images, precision, backend, num_fed):
    """Nats per pixel of the logits that sampling computes for these images."""
    plan = ExecutionPlan.choose(model, precision=precision, backend=backend)
    num_images, num_pixels = images.shape
    step = plan.make_backend(num_images, num_pixels)
    for row in range(num_images):
        step.admit(row, torch.empty(0, dtype=torch.int64))
    fed = functional.pad(images[:, :-1], (1, 0), value=model.config.sos_token_id)
    with torch.inference_mode():
        logits = [
            step.step(fed[:, window], window.expand(num_images, -1), range(num_images), num_pixels)
            for window in torch.arange(num_pixels).split(num_fed)
        ]
        by_class = torch.cat(logits, dim=1).double().transpose(1, 2)
        return float(functional.cross_entropy(by_class, images))


def prepared(model, precision):
    return prepare_model(model, choose_format(precision, model.device, model.dtype), "rows", in_place=False)


@pytest.mark.parametrize(("precision", "max_cost"), [("float32", 1e-6), ("bfloat16", 0.002), ("int8", 0.01)])
def test_rounded_weights_cost_little(model, images, exact, precision, max_cost):
    cost = mean_nll(prepared(model, precision), images) - exact
    assert abs(cost) <= max_cost


@pytest.mark.parametrize("num_fed", [64, 16, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("backend", ["cpp", "torch"])
@pytest.mark.parametrize(("precision", "max_cost"), [("float32", 1e-6), ("bfloat16", 0.002), ("int8", 0.01)])
def test_rounded_weights_keys_and_values_cost_little(model, images, exact, precision, backend, max_cost, num_fed):
    """For several numbers of positions per step, which determine the kernels torch uses."""
    cost = decoded_nll(model, images, precision, backend, num_fed) - exact
    assert abs(cost) <= max_cost


def test_the_cpp_backend_stores_keys_and_values_in_int8(model):
    for backend, width in (("cpp", 16 + 4), ("torch", 2 * 16)):
        plan = ExecutionPlan.choose(model, precision="int8", backend=backend)
        assert plan.bytes_per_image == 64 * (2 * 4 * 4 * width + 17 * 4 + 8)


def test_a_prepared_model_can_be_prepared_again(model, images, exact):
    """Regression: the precision was ignored for the model of a pipeline."""
    before = model.transformer.h[0].mlp.c_fc
    sampler = Sampler(model, precision="int8")
    assert sampler.model.transformer.h[0].mlp.c_fc.weight.dtype == torch.int8
    assert not is_lossless(sampler.model)
    assert type(before) is PackedLinear
    assert Sampler(sampler.model).plan.precision == "int8", "its precision is the default"
    again = Sampler(sampler.model, precision="float32").model
    assert again.transformer.h[0].mlp.c_fc.weight.dtype == torch.float32
    assert not is_lossless(again), "rounding cannot be undone"
    assert mean_nll(again, images) == pytest.approx(mean_nll(sampler.model, images), abs=1e-4)
    assert mean_nll(Sampler(model).model, images) == pytest.approx(exact, abs=1e-6)
    assert is_lossless(model)


def test_the_bounds_detect_coarser_rounding(model, images, exact):
    """Weights of three bits cost more than the bound for eight."""
    coarse = prepared(model, "float32")
    with torch.no_grad():
        for block in coarse.transformer.h:
            for linear in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
                step = linear.weight.abs().amax(dim=1, keepdim=True) / 3
                linear.weight.copy_((linear.weight / step).round() * step)
    assert mean_nll(coarse, images) - exact > 0.01
