"""Packed projections against the model's own."""

import pytest
import torch

from imagegpt.model.layers import Projection
from imagegpt.sampling import Sampler
from imagegpt.sampling.packed_linear import PackedLinear, is_lossless, prepare_model
from imagegpt.sampling.weight_formats import choose_format


def projection(bias=True, in_features=24):
    torch.manual_seed(0)
    made = Projection(in_features, 40, bias=bias)
    with torch.no_grad():
        made.weight.normal_()
        if bias:
            made.bias.normal_()
    return made


def packed(original, precision, layout):
    return PackedLinear(original, choose_format(precision, torch.device("cpu"), torch.float32), layout)


def prepared(model, precision, layout="rows", *, in_place=False):
    return prepare_model(model, choose_format(precision, model.device, model.dtype), layout, in_place=in_place)


@pytest.mark.parametrize("layout", ["rows", "tiles"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-6), ("bfloat16", 4e-3), ("int8", 8e-3)])
def test_every_precision_and_layout_computes_the_projection(precision, tolerance, bias, layout):
    original = projection(bias)
    frozen = packed(original, precision, layout)
    for shape in ((24,), (1, 24), (2, 3, 24), (0, 24)):
        x = torch.randn(shape)
        expected = original(x.unsqueeze(0))[0] if len(shape) == 1 else original(x)
        out = frozen(x.unsqueeze(0))[0] if len(shape) == 1 else frozen(x)
        assert out.dtype == torch.float32
        assert out.shape == expected.shape
        assert (out - expected).norm() <= tolerance * expected.norm()


def test_int8_rounds_to_the_nearest_of_255_steps_per_output():
    original = projection(bias=False)
    frozen = packed(original, "int8", "rows")
    largest = original.weight.abs().amax(dim=0)
    assert torch.equal(frozen.weight.abs().amax(dim=1), torch.full((40,), 127, dtype=torch.int8))
    assert ((frozen.dense_weight() - original.weight).abs() <= largest / 127 / 2 * 1.0001).all()


def test_int8_keeps_outputs_with_zero_weights_at_zero():
    original = projection(bias=False)
    with torch.no_grad():
        original.weight[:, 3] = 0
    frozen = packed(original, "int8", "rows")
    assert torch.equal(frozen(torch.randn(2, 24))[:, 3], torch.zeros(2))


@pytest.mark.parametrize("in_features", [24, 23])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_tiling_preserves_the_weight_bit_for_bit(precision, in_features):
    original = projection(in_features=in_features)
    rows, tiles = (packed(original, precision, layout) for layout in ("rows", "tiles"))
    assert tiles.weight.shape != rows.weight.shape
    assert torch.equal(tiles.dense_weight(), rows.dense_weight())
    assert torch.equal(packed(tiles, precision, "rows").weight, rows.weight)
    x = torch.randn(3, in_features)
    assert torch.equal(tiles(x), rows(x))


def test_preparing_copies_the_model(build_model):
    model = build_model().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frozen = prepared(model, "int8")
    assert not frozen.training
    assert model.training
    assert type(model.transformer.h[0].mlp.c_fc) is Projection
    ids = torch.randint(0, 10, (2, 5))
    logits = frozen(ids).logits
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(frozen(ids).logits, logits), "later changes to the model have no effect"
    model.load_state_dict(before)


def test_preparing_in_place_replaces_all_projections(build_model):
    model = build_model()
    ids = torch.randint(0, 10, (2, 5))
    expected = model(ids).logits
    assert prepared(model, "float32", in_place=True) is model
    assert type(model.transformer.h[0].mlp.c_fc) is PackedLinear
    assert not any(isinstance(module, Projection) for module in model.modules())
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=0)


def test_saving_packed_float32_weights_is_lossless(build_model, tmp_path):
    model = build_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prepared(model, "float32", "tiles", in_place=True).save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).state_dict()
    assert again.keys() == before.keys()
    assert all(torch.equal(again[name], before[name]) for name in before)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_rounded_weights_are_not_lossless_and_are_saved_unpacked(build_model, precision):
    frozen = prepared(build_model(), precision, in_place=True)
    assert not is_lossless(frozen)
    ids = torch.randint(0, 10, (2, 5))
    again = build_model()
    again.load_state_dict({name: tensor.float() for name, tensor in frozen.state_dict().items()})
    torch.testing.assert_close(again(ids).logits, frozen(ids).logits, atol=0.1, rtol=0)
    assert is_lossless(prepared(again, "float32", in_place=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_run_unchanged(build_model, dtype):
    model = build_model().to(dtype)
    images = Sampler(model).generate(seeds=[1, 2])
    assert Sampler(model).model.dtype == dtype
    assert images.shape == (2, 16)
    if dtype == torch.float64:
        assert torch.equal(images, Sampler(model.float()).generate(seeds=[1, 2]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_copy_in_another_dtype_shares_no_memory(build_model, dtype):
    """Regression: `Sampler(model)` shared the weights in these dtypes, so that training changed the images."""
    model = build_model().to(dtype)
    sampler = Sampler(model)
    images = sampler.generate(seeds=[1, 2])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(sampler.generate(seeds=[1, 2]), images)


@pytest.mark.parametrize("layout", ["rows", "tiles"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_prepared_model_refuses_other_dtypes(build_model, precision, dtype, layout):
    """Regression: tiles were read in the wrong dtype."""
    model = prepared(build_model(n_embd=32), precision, layout)
    with pytest.raises(
        TypeError, match=rf"^a model prepared for sampling in {precision} cannot be converted to {dtype}: load it"
    ):
        model.to(dtype)


@pytest.mark.parametrize("layout", ["rows", "tiles"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_moving_a_prepared_model_preserves_its_logits(build_model, precision, layout):
    model = prepared(build_model(n_embd=32), precision, layout)
    ids = torch.randint(0, 10, (2, 5))
    before = model(ids).logits
    assert torch.equal(model.float().cpu()(ids).logits, before)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_a_prepared_model_has_the_same_number_of_parameters(build_model, precision):
    """Regression: it reported 6,912 of 205,824."""
    model = build_model(n_embd=32, n_inner=64)
    count = model.num_parameters()
    assert prepared(model, precision, "tiles").num_parameters() == count
    assert not any(
        p.requires_grad
        for m in prepared(model, precision).modules()
        if isinstance(m, PackedLinear)
        for p in m.parameters()
    )


@pytest.mark.parametrize("layout", ["rows", "tiles"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_a_prepared_model_loads_packed_and_plain_state_dicts(build_model, precision, layout):
    """Regression: a square matrix was silently loaded transposed."""
    model, ids = build_model(n_embd=32, initializer_range=0.2), torch.randint(0, 10, (2, 5))
    first = prepared(model, precision, layout)
    expected = first(ids).logits
    saved = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    blank = prepared(build_model(n_embd=32), precision, layout)
    for given in (saved, model.state_dict()):
        with torch.no_grad():
            for parameter in blank.parameters():
                parameter.zero_()
        assert not any(blank.load_state_dict(given))
        torch.testing.assert_close(blank(ids).logits, expected, atol=1e-5, rtol=0)


def test_weights_of_the_wrong_shape_are_refused(build_model):
    model = prepared(build_model(), "float32", "tiles")
    wrong = model.state_dict() | {"transformer.h.0.mlp.c_fc.weight": torch.zeros(64, 16)}
    with pytest.raises(RuntimeError, match=r"c_fc.weight has the shape \(64, 16\): it must be \(16, 64\)"):
        model.load_state_dict(wrong)
    del wrong["transformer.h.0.mlp.c_fc.weight"]
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(wrong)


def test_loading_weights_into_a_sampler_changes_its_images(build_model):
    sampler = Sampler(build_model(), in_place=True)
    before = sampler.generate(seeds=[1])
    torch.manual_seed(9)
    other = build_model(initializer_range=0.7)
    sampler.model.load_state_dict(other.state_dict())
    assert not torch.equal(sampler.generate(seeds=[1]), before)
    assert torch.equal(sampler.generate(seeds=[1]), Sampler(other).generate(seeds=[1]))
