"""Models and processors of transformers' classes in the pipeline."""

import re

import pytest
import torch
import transformers
from torch import nn
from transformers.models.imagegpt.image_processing_pil_imagegpt import ImageGPTImageProcessorPil
from transformers.models.imagegpt.modeling_imagegpt import ImageGPTForCausalImageModeling as TheirModel

from imagegpt import ColorPalette, ImageGPTImageProcessor, ImageGPTPipeline
from imagegpt.checkpoints.from_transformers import convert_model, convert_processor

FIELDS = {"vocab_size": 11, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.5}
PALETTE = ColorPalette.grey(10)


@pytest.fixture
def theirs():
    return TheirModel(transformers.ImageGPTConfig(**FIELDS)).eval()


@pytest.fixture
def processor():
    return ImageGPTImageProcessor(PALETTE, size=4)


def test_transformers_model_samples_like_its_folder(theirs, processor, tmp_path):
    pipe = ImageGPTPipeline(theirs, processor)
    theirs.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = ImageGPTPipeline.from_pretrained(tmp_path)
    assert [image.tobytes() for image in pipe.sample(3)] == [image.tobytes() for image in loaded.sample(3)]


def test_weights_are_shared_and_original_is_unchanged(theirs):
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    ours = convert_model(theirs)
    for name, tensor in ours.state_dict().items():
        assert tensor.data_ptr() == theirs.state_dict()[name].data_ptr(), name
    assert not ours.training
    assert convert_model(theirs.train()).training
    ids = torch.randint(0, 10, (2, 16))
    theirs.eval()
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-4, atol=1e-5)
    pipe = ImageGPTPipeline(theirs, ImageGPTImageProcessor(PALETTE, size=4), precision="int8")
    pipe.sample(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in theirs.state_dict().items())


def test_half_precision_and_fields_of_the_configuration_are_kept():
    config = transformers.ImageGPTConfig(**FIELDS, scale_attn_by_inverse_layer_idx=True, activation_function="gelu")
    ours = convert_model(TheirModel(config).to(torch.bfloat16))
    assert ours.dtype == torch.bfloat16
    assert ours.config.scale_attn_by_inverse_layer_idx
    assert ours.config.activation_function == "gelu"


def test_a_processor_of_transformers_gives_the_same_ids(theirs):
    reference = ImageGPTImageProcessorPil(clusters=PALETTE.clusters.tolist(), size={"height": 4, "width": 4})
    pipe = ImageGPTPipeline(theirs, reference)
    image = ImageGPTImageProcessor(PALETTE, size=(20, 30)).decode(torch.arange(600)[None] % 10)[0].convert("RGB")
    assert pipe.processor.resize_mode == "squash"
    assert pipe.encode(image).tolist() == torch.as_tensor(reference(image)["input_ids"][0])[None].tolist()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (
            lambda: transformers.ImageGPTForImageClassification(transformers.ImageGPTConfig(**FIELDS)),
            "transformers.models.imagegpt.modeling_imagegpt.ImageGPTForImageClassification",
        ),
        (
            lambda: transformers.ImageGPTModel(transformers.ImageGPTConfig(**FIELDS)),
            "transformers.models.imagegpt.modeling_imagegpt.ImageGPTModel",
        ),
        (lambda: nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (lambda: None, "builtins.NoneType"),
    ],
)
def test_other_models_are_refused(make, name, processor):
    message = f"the model is a {name}: give an ImageGPTForCausalImageModeling of imagegpt or"
    with pytest.raises(ValueError, match=re.escape(message)):
        ImageGPTPipeline(make(), processor)


def test_our_own_classifier_is_refused_too(processor):
    from imagegpt import ImageGPTConfig, ImageGPTForImageClassification

    with pytest.raises(ValueError, match=r"is a imagegpt\.model\.modeling\.ImageGPTForImageClassification:"):
        ImageGPTPipeline(ImageGPTForImageClassification(ImageGPTConfig(**FIELDS)), processor)


def test_other_processors_are_refused(theirs):
    message = "the processor is a builtins.NoneType: give an ImageGPTImageProcessor of imagegpt or"
    with pytest.raises(ValueError, match=re.escape(message)):
        ImageGPTPipeline(theirs, None)
    with pytest.raises(ValueError, match=r"makes images of 5 x 5 = 25 pixels, the model has 16 positions"):
        ImageGPTPipeline(theirs, ImageGPTImageProcessorPil(clusters=PALETTE.clusters.tolist(), size=5))
    assert convert_processor(ImageGPTImageProcessorPil(size=5)).palette is None
