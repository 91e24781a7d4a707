"""transformers' pipelines with our models and processor, and the tests of its ImageGPT."""

import numpy as np
import pytest
import torch
from every_model import EVERY_CLASS, model_of
from PIL import Image
from transformers import pipeline
from transformers.pytorch_utils import Conv1D

from helpers import image_ids, largest_difference, tiny_config
from imagegpt import (
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
    ImageGPTImageProcessor,
    ImageGPTModel,
)

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)


def processor():
    """Sixteen grey levels, images of 4 x 4 pixels."""
    levels = torch.linspace(-1, 1, 16)[:, None].expand(16, 3).numpy()
    return ImageGPTImageProcessor(clusters=levels, size={"height": 4, "width": 4})


def pictures(count=3):
    noise = np.random.default_rng(0).integers(0, 256, (count, 5, 7, 3), dtype=np.uint8)
    return [Image.fromarray(picture) for picture in noise]


def loaded(model_class, dtype, folder):
    model_of(model_class).save_pretrained(folder)
    return model_class.from_pretrained(folder, dtype=dtype).eval()


@DTYPES
def test_image_classification(dtype, tmp_path):
    model = loaded(ImageGPTForImageClassification, dtype, tmp_path)
    classify = pipeline("image-classification", model=model, image_processor=processor(), device="cpu")
    for answers, picture in zip(classify(pictures(), batch_size=2), pictures(), strict=True):
        ids = processor()(picture, return_tensors="pt").input_ids
        scores = model(ids).logits.float().softmax(-1)[0]
        assert [answer["label"] for answer in answers] == [f"LABEL_{i}" for i in scores.argsort(descending=True)]
        assert answers[0]["score"] == pytest.approx(scores.max().item(), abs=2e-2 if dtype != torch.float32 else 1e-5)


@DTYPES
def test_image_feature_extraction(dtype, tmp_path):
    model = loaded(ImageGPTModel, dtype, tmp_path)
    extract = pipeline("image-feature-extraction", model=model, image_processor=processor(), device="cpu")
    for features, picture in zip(extract(pictures()), pictures(), strict=True):
        expected = model(processor()(picture, return_tensors="pt").input_ids).last_hidden_state
        assert largest_difference(torch.tensor(features), expected.float()) < 1e-6


# --- Built by hand ---


@EVERY_CLASS
def test_shapes_with_token_types_and_padding(model_class):
    model = model_of(model_class)
    mask = torch.tensor([[1] * 7, [0] * 2 + [1] * 5])
    inputs = {"token_type_ids": image_ids(pixels=7, sos=False), "attention_mask": mask}
    outputs = model(image_ids(pixels=7), **inputs)
    shapes = {
        ImageGPTModel: (2, 7, 32),
        ImageGPTForCausalImageModeling: (2, 7, 16),  # no score for the start token
        ImageGPTForImageClassification: (2, 3),
    }
    assert outputs[0].shape == shapes[model_class]
    assert len(outputs.past_key_values if "past_key_values" in outputs else outputs.cache) == 2


@EVERY_CLASS
def test_all_projections_and_embeddings_follow_the_initializer_range(model_class):
    model = model_class(tiny_config(initializer_range=1e-10, num_labels=3))
    projections = [module for module in model.modules() if isinstance(module, Conv1D)]
    assert len(projections) == 2 * 4
    for name, parameter in model.named_parameters():
        expected = 1.0 if "ln_" in name else 0.0
        assert (parameter - expected).abs().max() < 1e-8, name


@EVERY_CLASS
def test_models_are_small(model_class):
    assert sum(parameter.numel() for parameter in model_of(model_class).parameters()) < 100_000
    assert model_of(model_class).config.n_layer == 2
