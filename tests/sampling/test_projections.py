"""The projections laid out for sampling, against the model's own."""

import pytest
import torch

from imagegpt.model.layers import Projection
from imagegpt.sampling import Sampler
from imagegpt.sampling.projections import FrozenProjection, freeze, is_exact, lay_out


def projection(bias=True, in_features=24):
    torch.manual_seed(0)
    made = Projection(in_features, 40, bias=bias)
    with torch.no_grad():
        made.weight.normal_()
        if bias:
            made.bias.normal_()
    return made


@pytest.mark.parametrize("layout", ["rows", "tiles"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-6), ("bfloat16", 4e-3), ("int8", 8e-3)])
def test_every_precision_and_layout_computes_the_map(precision, tolerance, bias, layout, with_kernels):
    original = projection(bias)
    frozen = FrozenProjection(original, precision)
    frozen.lay_out(layout)
    for shape in ((24,), (1, 24), (2, 3, 24), (0, 24)):
        x = torch.randn(shape)
        expected = original(x.unsqueeze(0))[0] if len(shape) == 1 else original(x)
        out = frozen(x.unsqueeze(0))[0] if len(shape) == 1 else frozen(x)
        assert out.dtype == torch.float32
        assert out.shape == expected.shape
        assert (out - expected).norm() <= tolerance * expected.norm()


def test_int8_is_the_nearest_of_255_steps_of_each_output():
    original = projection(bias=False)
    frozen = FrozenProjection(original, "int8")
    largest = original.weight.abs().amax(dim=0)
    assert torch.equal(frozen.weight.abs().amax(dim=1), torch.full((40,), 127, dtype=torch.int8))
    assert ((frozen.dense_weight() - original.weight).abs() <= largest / 127 / 2 * 1.0001).all()


def test_rows_of_zeros_stay_zeros_in_int8():
    original = projection(bias=False)
    with torch.no_grad():
        original.weight[:, 3] = 0
    frozen = FrozenProjection(original, "int8")
    assert torch.equal(frozen(torch.randn(2, 24))[:, 3], torch.zeros(2))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_tiling_and_back_changes_no_bit(precision):
    frozen = FrozenProjection(projection(), precision)
    before, dense = frozen.weight.clone(), frozen.dense_weight()
    frozen.lay_out("tiles")
    assert frozen.layout == "tiles"
    assert frozen.weight.shape != before.shape
    assert torch.equal(frozen.dense_weight(), dense)
    frozen.lay_out("tiles")
    frozen.lay_out("rows")
    assert torch.equal(frozen.weight, before)


def test_what_the_kernel_cannot_multiply_with_stays_in_rows():
    original = projection(in_features=23)
    frozen = FrozenProjection(original, "float32")
    frozen.lay_out("tiles")
    assert frozen.layout == "rows"
    x = torch.randn(2, 23)
    torch.testing.assert_close(frozen(x), original(x))


def test_freezing_copies_and_leaves_the_model_alone(build_model):
    model = build_model().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frozen = freeze(model, "int8", in_place=False)
    assert not frozen.training
    assert model.training
    assert type(model.transformer.h[0].mlp.c_fc) is Projection
    ids = torch.randint(0, 10, (2, 5))
    logits = frozen(ids).logits
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(frozen(ids).logits, logits), "what becomes of the model later does not matter"
    model.load_state_dict(before)


def test_freezing_in_place_holds_one_set_of_weights(build_model):
    model = build_model()
    ids = torch.randint(0, 10, (2, 5))
    expected = model(ids).logits
    assert freeze(model, "float32", in_place=True) is model
    assert type(model.transformer.h[0].mlp.c_fc) is FrozenProjection
    assert not any(isinstance(module, Projection) for module in model.modules())
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=0)


def test_frozen_float32_weights_are_saved_as_they_were(build_model, tmp_path):
    model = build_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frozen = freeze(model, None, in_place=True)
    lay_out(frozen, "tiles")
    frozen.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).state_dict()
    assert again.keys() == before.keys()
    assert all(torch.equal(again[name], before[name]) for name in before)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_rounded_weights_are_known_as_such_and_saved_as_what_they_stand_for(build_model, precision):
    frozen = freeze(build_model(), precision, in_place=True)
    assert not is_exact(frozen)
    ids = torch.randint(0, 10, (2, 5))
    again = build_model()
    again.load_state_dict({name: tensor.float() for name, tensor in frozen.state_dict().items()})
    torch.testing.assert_close(again(ids).logits, frozen(ids).logits, atol=0.1, rtol=0)
    assert is_exact(freeze(again, "float32", in_place=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_run_as_they_are(build_model, dtype):
    model = build_model().to(dtype)
    images = Sampler(model).generate(seeds=[1, 2])
    assert Sampler(model).model.dtype == dtype
    assert images.shape == (2, 16)
    if dtype == torch.float64:
        assert torch.equal(images, Sampler(model.float()).generate(seeds=[1, 2]))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_in_tiles_can_be_cast(build_model, precision, dtype, with_kernels):
    """`pipe.model.half()` used to read tiles of float16 as if they were of bfloat16."""
    model = freeze(build_model(n_embd=32), precision, in_place=False)
    ids = torch.randint(model.config.num_colors, (2, model.config.n_positions))
    expected = model(ids).logits
    lay_out(model, "tiles")
    cast = model.to(dtype)
    assert {part.layout for part in cast.modules() if isinstance(part, FrozenProjection)} == {"rows"}
    logits = cast(ids).logits
    assert logits.dtype == dtype
    distance = (logits.double() - expected.double()).norm() / expected.double().norm()
    assert distance < (0.03 if dtype == torch.bfloat16 or precision != "float32" else 0.005)
    lay_out(cast, "tiles")  # what the kernel cannot multiply with stays in rows
    again = cast(ids).logits
    assert (again.double() - expected.double()).norm() / expected.double().norm() < 0.03


def test_casting_to_the_same_dtype_and_saving(build_model, with_kernels):
    model = freeze(build_model(n_embd=32), "float32", in_place=False)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    lay_out(model, "tiles")
    assert all(torch.equal(weight, before[name]) for name, weight in model.float().cpu().state_dict().items())
