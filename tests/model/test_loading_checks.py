"""Every loader reports weights that do not match the configuration, in one sentence."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import image_ids, tiny_model
from imagegpt import ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTModel
from imagegpt.checkpoints.loading import load_model
from imagegpt.model.resizing import resize_color_embeddings


@pytest.fixture
def folder_with(tmp_path):
    """A folder in which one weight has more or fewer rows."""

    def make(name, more, model_class=ImageGPTForCausalImageModeling, kind="safetensors"):
        tiny_model(model_class, num_labels=3).save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
        weights = load_file(path)
        rows = weights[name]
        weights[name] = rows[:more].clone() if more < 0 else torch.cat([rows, rows[:more]])
        if kind == "safetensors":
            save_file(weights, path, metadata={"format": "pt"})
        else:
            path.unlink()
            torch.save(weights, tmp_path / "pytorch_model.bin")
        return tmp_path

    return make


WRONG = [
    (ImageGPTForCausalImageModeling, "lm_head.weight", -1, r"lm_head\.weight is \(15, 32\), not \(16, 32\)"),
    (ImageGPTForCausalImageModeling, "lm_head.weight", 1, r"lm_head\.weight is \(17, 32\), not \(16, 32\)"),
    (ImageGPTForCausalImageModeling, "transformer.wte.weight", -1, r"wte\.weight is \(16, 32\), not \(17, 32\)"),
    (ImageGPTForCausalImageModeling, "transformer.h.1.mlp.c_fc.bias", -3, r"c_fc\.bias is \(125,\), not \(128,\)"),
    (ImageGPTForImageClassification, "score.weight", 1, r"score\.weight is \(4, 32\), not \(3, 32\)"),
    (ImageGPTModel, "wpe.weight", -1, r"wpe\.weight is \(15, 32\), not \(16, 32\)"),
]


@pytest.mark.parametrize(("model_class", "name", "more", "message"), WRONG)
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_mismatched_shapes_are_an_error(model_class, name, more, message, kind, folder_with):
    folder = folder_with(name, more, model_class, kind)
    with pytest.raises(ValueError, match=f"the weights do not match the configuration: .*{message}; correct") as error:
        model_class.from_pretrained(folder)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, RuntimeError)  # as transformers' own
    with pytest.raises(ValueError, match=r"do not match its config\.json"):
        load_model(folder, model_class)


@pytest.mark.parametrize("more", [-1, 1])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("model_class", [ImageGPTModel, ImageGPTForImageClassification])
def test_unused_head_must_match_too(model_class, kind, more, folder_with):
    """Regression: the base model and the classifier ignored a generative head of the wrong shape."""
    folder = folder_with("lm_head.weight", more, kind=kind)
    with pytest.raises(ValueError, match=rf"lm_head\.weight is \({16 + more}, 32\), not \(16, 32\); correct its sizes"):
        model_class.from_pretrained(folder)
    assert model_class.from_pretrained(folder, ignore_mismatched_sizes=True).config.vocab_size == 17
    tiny_model().save_pretrained(folder)
    (folder / "pytorch_model.bin").unlink(missing_ok=True)
    model_class.from_pretrained(folder)


def test_long_lists_of_mismatches_are_shortened(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lm_head\.weight is .* and \d+ more; correct its sizes"):
        ImageGPTForCausalImageModeling.from_pretrained(tmp_path, n_embd=36)


def test_ignore_mismatched_sizes_initializes_weights(folder_with):
    """A classifier with another number of classes, as in transformers."""
    tiny_model(ImageGPTForImageClassification, num_labels=3).save_pretrained(folder := folder_with("lm_head.weight", 1))
    model, report = ImageGPTForImageClassification.from_pretrained(
        folder, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert model(image_ids()).logits.shape == (2, 5)
    assert [name for name, *_ in report["mismatched_keys"]] == ["score.weight"]
    alone = ImageGPTForImageClassification.from_pretrained(folder)
    assert isinstance(alone, ImageGPTForImageClassification)


def test_inconsistent_matrices_are_not_resized():
    model = tiny_model()
    model.lm_head = torch.nn.Linear(32, 15, bias=False)
    with pytest.raises(ValueError, match="the output matrix has 15 rows and the token embedding 17: it must"):
        model.resize_token_embeddings(20)
    with pytest.raises(ValueError, match="the output matrix has 15 rows"):
        resize_color_embeddings(model.transformer.wte, model.lm_head, 9, 0.02)
