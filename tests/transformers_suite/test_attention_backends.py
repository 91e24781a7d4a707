"""Every available attention backend against eager attention in float64, on every model class."""

import pytest
import torch
from every_model import EVERY_CLASS, EVERY_MODEL_PARTLY_SLOW, batch_for, gradients_of, main_output, model_of
from torch.nn.attention import SDPBackend, sdpa_kernel

from helpers import image_ids, largest_difference, tiny_config

BACKENDS = ["eager", "sdpa", "kernels"]
# transformers recompiles flex_attention for each mask, so only slow tests use it, with one mask of each kind.
WITH_FLEX = [*BACKENDS, pytest.param("flex_attention", marks=pytest.mark.slow)]
# For outputs of the order of 1; measured are 1.4e-6, 6e-3 and 4e-2.
TOLERANCES = {torch.float32: 5e-6, torch.float16: 1.5e-2, torch.bfloat16: 0.1}

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")


def padded(side):
    """Two images, the second of which has four positions of padding on a side, or none ("none": no mask is given)."""
    mask = torch.ones(2, 16, dtype=torch.long)
    if side == "left":
        mask[1, :4] = 0
    if side == "right":
        mask[1, -4:] = 0
    return {} if side == "none" else {"attention_mask": mask}


def visible_part(output, inputs):
    """The rows of (B, T, ...) outputs without padding; outputs without positions unchanged."""
    if output.ndim == 3 and "attention_mask" in inputs:
        return output[inputs["attention_mask"].bool()]
    return output


@pytest.fixture
def kernels_if_wanted(request, backend):
    if backend == "kernels":
        request.getfixturevalue("with_training_kernels")


@EVERY_MODEL_PARTLY_SLOW
@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("backend", WITH_FLEX)
@pytest.mark.usefixtures("kernels_if_wanted")
def test_outputs_are_those_of_eager_attention_in_float64(model_class, kind, backend, dtype, tmp_path):
    if backend == "flex_attention" and (dtype != torch.float32 or "no_biases" in kind):
        pytest.skip("the same compiled attention as in float32 and with biases")
    exact = model_of(model_class, kind, dtype=torch.float64, backend="eager", shift_inputs=False)
    model_of(model_class, kind, shift_inputs=False).save_pretrained(tmp_path)
    model = model_class.from_pretrained(tmp_path, dtype=dtype, attn_implementation=backend).eval()
    assert model.config._attn_implementation == backend
    for side in ("none", "left", "right"):
        if model_class.__name__.endswith("Classification") and side != "none":
            continue  # it averages over all positions, including padding, whose features are undefined
        inputs = {**batch_for(model, labels=False), **padded(side)}
        with torch.no_grad():
            found, expected = main_output(model, inputs), main_output(exact, inputs)
        assert found.dtype == dtype
        difference = largest_difference(visible_part(found, inputs), visible_part(expected, inputs))
        assert difference < TOLERANCES[dtype], side


@EVERY_MODEL_PARTLY_SLOW
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("kernels_if_wanted")
def test_gradients_are_those_of_eager_attention_in_float64(model_class, kind, backend):
    exact = model_of(model_class, kind, dtype=torch.float64, backend="eager").train()
    model = model_of(model_class, kind, backend=backend).train()
    expected_loss, expected = gradients_of(exact, batch_for(exact))
    loss, found = gradients_of(model, batch_for(model))
    assert largest_difference(loss, expected_loss) < 1e-5
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert largest_difference(found[name], gradient) < 1e-5 * (1 + gradient.abs().max().item()), name


@EVERY_CLASS
@pytest.mark.parametrize("kernel", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION], ids=["math", "flash"])
def test_each_kernel_of_sdpa_on_a_cpu(model_class, kernel):
    model, eager = model_of(model_class, backend="sdpa"), model_of(model_class, backend="eager")
    inputs = batch_for(model, labels=False)
    with torch.no_grad(), sdpa_kernel(kernel):
        assert largest_difference(main_output(model, inputs), main_output(eager, inputs)) < 1e-5


@EVERY_CLASS
def test_ways_to_choose_the_backend(model_class, tmp_path):
    config = tiny_config(num_labels=3)
    assert model_class(config).config._attn_implementation == "sdpa"
    for backend in ("eager", "sdpa", "flex_attention"):
        assert tiny_config(attn_implementation=backend)._attn_implementation == backend
        built = model_class._from_config(tiny_config(num_labels=3), attn_implementation=backend)
        assert built.config._attn_implementation == backend
        assert built.base_model.config._attn_implementation == backend
        config._attn_implementation = backend
        assert config._attn_implementation == backend
    model = model_of(model_class)
    expected = model(image_ids())[0]
    for backend in ("eager", "sdpa", "eager"):
        model.set_attn_implementation(backend)
        for part in (model, model.base_model, model.base_model.h[0].attn):
            assert part.config._attn_implementation == backend
        assert largest_difference(model(image_ids())[0], expected) < 1e-5
    model.save_pretrained(tmp_path)  # the choice is the machine's, not the file's
    assert model_class.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


@EVERY_CLASS
def test_unknown_backend_is_an_error_and_changes_nothing(model_class):
    model = model_of(model_class)
    with pytest.raises(ValueError, match="attn_implementation"):
        model.set_attn_implementation("attention_of_nobody")
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="attn_implementation"):
        model_class._from_config(tiny_config(), attn_implementation="attention_of_nobody")
