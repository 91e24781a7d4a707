"""Resizing of a model's palette and image size.

transformers' own resizing appends rows to the input and gives the output as many: the start token's row would become a
colour and the start token could be drawn.
"""

import pytest
import torch

from helpers import image_ids, largest_difference, tiny_model
from imagegpt import ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTModel


@pytest.mark.parametrize("vocab_size", [3, 9, 16, 18, 40])
def test_start_token_stays_last(vocab_size):
    model = tiny_model()
    old_in, old_out = model.transformer.wte.weight.detach().clone(), model.lm_head.weight.detach().clone()
    embedding = model.resize_token_embeddings(vocab_size)
    assert embedding is model.transformer.wte
    assert model.config.vocab_size == vocab_size
    assert model.config.sos_token_id == vocab_size - 1
    assert embedding.weight.shape == (vocab_size, 32)
    assert embedding.num_embeddings == vocab_size
    assert model.lm_head.weight.shape == (vocab_size - 1, 32)
    assert model.lm_head.out_features == vocab_size - 1
    assert torch.equal(embedding.weight[-1], old_in[-1])
    kept = min(vocab_size - 1, 16)
    assert torch.equal(embedding.weight[:kept], old_in[:kept])
    assert torch.equal(model.lm_head.weight[:kept], old_out[:kept])


@pytest.mark.parametrize("vocab_size", [9, 40])
def test_logits_of_remaining_colors_are_unchanged(vocab_size):
    model = tiny_model()
    ids = image_ids() % 8
    ids[:, 0] = 16
    before = model(ids).logits
    model.resize_token_embeddings(vocab_size)
    ids[:, 0] = vocab_size - 1
    kept = min(vocab_size - 1, 16)
    assert largest_difference(model(ids).logits[..., :kept], before[..., :kept]) < 1e-6


def test_new_rows_are_centred_on_the_mean():
    model = tiny_model(initializer_range=0.01)
    mean = model.transformer.wte.weight[:16].mean(0)
    model.resize_token_embeddings(517)
    new = model.transformer.wte.weight[16:-1] - mean
    assert new.mean().abs() < 0.001
    assert new.std().item() == pytest.approx(0.01, rel=0.05)


def test_new_rows_are_centred_on_zero_without_mean_resizing():
    model = tiny_model()
    before = model.transformer.wte.weight.clone()
    torch.manual_seed(0)
    model.resize_token_embeddings(1017, mean_resizing=False)
    assert torch.equal(model.transformer.wte.weight[:16], before[:16])
    for new in (model.transformer.wte.weight[16:-1], model.lm_head.weight[16:]):
        assert new.shape[0] == 1000
        assert new.mean(dim=0).abs().max() < 5 * 0.02 / 1000**0.5
        assert abs(new.std() / 0.02 - 1) < 0.02


@pytest.mark.parametrize(
    ("tokens", "multiple", "expected"), [(None, 8, 24), (30, 8, 32), (32, 8, 32), (9, 4, 12), (None, 17, 17)]
)
def test_tokens_are_padded_to_a_multiple(tokens, multiple, expected):
    model = tiny_model()
    sos = model.transformer.wte.weight[-1].clone()
    model.resize_token_embeddings(tokens, pad_to_multiple_of=multiple)
    assert model.config.vocab_size == model.transformer.wte.num_embeddings == expected
    assert model.lm_head.weight.shape[0] == expected - 1
    assert torch.equal(model.transformer.wte.weight[-1], sos)
    assert model(image_ids(config=model.config)).logits.shape[-1] == expected - 1


@pytest.mark.parametrize("model_class", [ImageGPTForCausalImageModeling, ImageGPTModel, ImageGPTForImageClassification])
def test_resized_models_save_and_load(model_class, tmp_path):
    model = tiny_model(model_class)
    model.resize_token_embeddings(30)
    model.resize_position_embeddings(25)
    model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    ids = torch.randint(0, 29, (2, 25))
    assert largest_difference(loaded(ids)[0], model(ids)[0]) == 0


def test_resized_models_generate_and_train():
    model = tiny_model()
    model.resize_token_embeddings(30)
    model.resize_position_embeddings(25)
    images = model.generate(do_sample=True)
    assert images.shape == (1, 26)
    assert images[0, 0] == 29
    assert images[0, 1:].max() < 29
    model(images, labels=images).loss.backward()
    assert model.transformer.wte.weight.grad.shape == (30, 32)


def test_the_same_size_or_none_changes_nothing():
    model = tiny_model()
    weight = model.transformer.wte.weight
    assert model.resize_token_embeddings() is model.transformer.wte
    assert model.resize_token_embeddings(17) is model.transformer.wte
    assert model.transformer.wte.weight is weight


def test_requires_grad_and_dtype_are_kept():
    model = tiny_model(dtype=torch.bfloat16).requires_grad_(False)
    model.resize_token_embeddings(30)
    model.resize_position_embeddings(4)
    for weight in (model.transformer.wte.weight, model.lm_head.weight, model.transformer.wpe.weight):
        assert weight.dtype == torch.bfloat16
        assert not weight.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"new_num_tokens": 2}, "2 tokens"),
        ({"new_num_tokens": 0}, "0 tokens"),
        ({"new_num_tokens": -3}, "-3 tokens"),
        ({"new_num_tokens": 30, "pad_to_multiple_of": 0}, "pad_to_multiple_of is 0"),
        ({"new_num_tokens": 30, "pad_to_multiple_of": 2.5}, "pad_to_multiple_of is 2.5"),
        ({"pad_to_multiple_of": -8}, "pad_to_multiple_of is -8"),
        ({"pad_to_multiple_of": float("inf")}, "pad_to_multiple_of is inf"),
        ({"pad_to_multiple_of": float("nan")}, "pad_to_multiple_of is nan"),
        ({"new_num_tokens": 0, "pad_to_multiple_of": 8}, "0 tokens"),
    ],
)
def test_invalid_sizes_are_an_error_and_change_nothing(arguments, message):
    model = tiny_model()
    with pytest.raises(ValueError, match=message):
        model.resize_token_embeddings(**arguments)
    assert model.config.vocab_size == 17
    assert model.transformer.wte.weight.shape == (17, 32)


# --- Positions ---


def test_positions_are_interpolated_as_an_image():
    """A plane stays a plane: rows and columns of the grid are counted in pixels, whatever the size."""
    model = tiny_model(ImageGPTModel)
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    with torch.no_grad():
        model.wpe.weight.copy_((10 * rows + columns).flatten()[:, None].expand(16, 32))
    model.resize_position_embeddings(64)
    grid = model.wpe.weight[:, 0].reshape(8, 8)
    # Twice the size halves the steps between rows and between columns; torch's cubic bends a slope by 15 % or so.
    assert (grid[4, 3] - grid[3, 3]).item() == pytest.approx(5, rel=0.25)
    assert (grid[3, 4] - grid[3, 3]).item() == pytest.approx(0.5, rel=0.25)
    assert largest_difference(grid + grid.flip(0, 1), torch.full((8, 8), 33.0)) < 1e-4  # the centre stays the centre
    assert model.config.n_positions == 64
    assert model.wpe.num_embeddings == 64
    assert model.get_position_embeddings() is model.wpe


def test_constant_positions_stay_constant():
    model = tiny_model(ImageGPTModel)
    with torch.no_grad():
        model.wpe.weight.copy_(torch.arange(32.0).expand(16, 32))
    model.resize_position_embeddings(9)
    assert largest_difference(model.wpe.weight, torch.arange(32.0).expand(9, 32)) < 1e-4


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (16, 15),
        (16, 0),
        (12, 16),
        (16, -4),
    ],
)
def test_non_square_images_are_an_error(old, new):
    model = tiny_model(n_positions=old)
    with pytest.raises(ValueError, match=rf"from {old} to {new} pixels"):
        model.resize_position_embeddings(new)
    assert model.config.n_positions == old
