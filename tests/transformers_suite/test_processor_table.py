"""Our counterpart of each test of transformers' test suite for image processors, or the reason why there is none.

The methods are those of `PreprocessingTesterMixin` (tests/test_preprocessing_common.py), of `ImageProcessingTestMixin`
and its companions (tests/test_image_processing_common.py) and of ImageGPT's own file, in transformers' repository as of
5.24; those that are called otherwise in releases from 5.17 on follow by their older names.
"""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING, AutoImageProcessor
from transformers.models.imagegpt.image_processing_pil_imagegpt import ImageGPTImageProcessorPil as Reference

from imagegpt import ColorPalette, ImageGPTConfig, ImageGPTImageProcessor

TESTS = Path(__file__).resolve().parent.parent
RNG = np.random.default_rng(0)
PALETTE = ColorPalette([[0.887, 0.662, 0.389], [-0.604, -0.023, 0.542]])
FIELDS = {"clusters": PALETTE.clusters, "do_resize": True, "size": {"height": 18, "width": 18}, "do_normalize": True}

# The file, from tests/, and the name of our test.
HERE = "transformers_suite/test_processor_table.py"
PROCESSING = "images/test_processor.py"
OURS = {
    # PreprocessingTesterMixin
    "test_to_json_string": (HERE, "test_every_field_is_in_the_json"),
    "test_to_json_file": (HERE, "test_a_file_gives_back_the_same_processor"),
    "test_from_and_save_pretrained": (PROCESSING, "test_every_option_survives_save_and_load"),
    "test_save_load_with_auto_class": (HERE, "test_auto_classes_load_either_librarys_folder"),
    "test_init_without_params": (PROCESSING, "test_defaults_and_raster_order"),
    "test_override_instance_attributes_does_not_affect_other_instances": (HERE, "test_instances_share_no_attributes"),
    "test_save_load_backends": (PROCESSING, "test_transformers_folder_loads_and_squashes"),
    "test_save_load_backends_auto": (HERE, "test_auto_classes_load_either_librarys_folder"),
    "test_explicit_none_kwarg_falls_back_to_default": (
        PROCESSING,
        "test_call_option_of_none_uses_the_processors",
    ),
    "test_cast_dtype_device": (HERE, "test_results_can_be_cast_and_moved"),
    # ImageProcessingTestMixin
    "test_backends_equivalence": (PROCESSING, "test_resized_photo_ids_match_transformers"),
    "test_backends_equivalence_batched": (PROCESSING, "test_resized_photo_ids_match_transformers"),
    "test_call_pil": (HERE, "test_images_of_many_sizes_make_one_batch"),
    "test_call_numpy": (HERE, "test_images_of_many_sizes_make_one_batch"),
    "test_call_pytorch": (HERE, "test_images_of_many_sizes_make_one_batch"),
    "test_call_numpy_4_channels": (HERE, "test_four_channels_are_colour_and_transparency"),
    "test_image_processor_preprocess_arguments": (PROCESSING, "test_refused_calls"),
    # ImageGPT's own
    "test_image_processor_properties": (HERE, "test_every_field_is_an_attribute"),
    "test_image_processor_from_dict_with_kwargs": (PROCESSING, "test_loading_with_other_options"),
    # By their older names
    "test_image_processor_to_json_string": (HERE, "test_every_field_is_in_the_json"),
    "test_image_processor_to_json_file": (HERE, "test_a_file_gives_back_the_same_processor"),
    "test_image_processor_from_and_save_pretrained": (PROCESSING, "test_every_option_survives_save_and_load"),
    "test_image_processor_save_load_with_autoimageprocessor": (HERE, "test_auto_classes_load_either_librarys_folder"),
    "test_slow_fast_equivalence": (PROCESSING, "test_resized_photo_ids_match_transformers"),
    "test_slow_fast_equivalence_batched": (PROCESSING, "test_resized_photo_ids_match_transformers"),
    "test_save_load_fast_slow": (PROCESSING, "test_our_folder_loads_in_transformers"),
    "test_save_load_fast_slow_auto": (HERE, "test_auto_classes_load_either_librarys_folder"),
}
REASONS = {
    "test_explicit_none_preserved": "a switch is True or False here; None stands for the default, everywhere",
    "test_can_compile_torchvision_backend": "one processor, on Pillow and numpy: nothing for torch.compile",
    "test_can_compile_fast_image_processor": "as above, by its older name",
    "test_fast_is_faster_than_slow": "one processor; no test of ours asserts times, benchmarks/encode.py measures",
    "test_new_models_require_torchvision_backend": "a rule for contributors of transformers; ours serves both backends",
    "test_post_process_test_mixin_inheritance": "about the structure of transformers' test classes",
    "test_post_process_semantic_segmentation": "ImageGPT segments nothing, its processor has no such method",
    "test_post_process_semantic_segmentation_target_sizes": "as above",
    "test_processor_can_use_legacy_annotation_format": "ImageGPT takes no annotations of COCO",
    "test_image": "needs the hub; ids equal the reference's in test_cifar_ids_match_transformers",
}


@pytest.mark.parametrize("method", OURS)
def test_the_tests_of_the_table_exist(method):
    file, name = OURS[method]
    functions = [node.name for node in ast.walk(ast.parse((TESTS / file).read_text())) if hasattr(node, "name")]
    assert name in functions, f"{file} has no {name}"


def test_each_method_has_a_test_or_a_reason():
    assert not OURS.keys() & REASONS.keys()
    assert all(len(reason.split()) > 1 for reason in REASONS.values())


@pytest.fixture
def processor():
    return ImageGPTImageProcessor(**FIELDS)


def images(kind, num_channels=3):
    """Seven images of 30 to 400 pixels a side, channels last as arrays and first as tensors."""
    sides = RNG.integers(30, 400, (7, 2))
    arrays = [RNG.integers(0, 256, (height, width, num_channels), np.uint8) for height, width in sides]
    convert = {"pil": Image.fromarray, "numpy": np.asarray, "torch": lambda a: torch.from_numpy(a).permute(2, 0, 1)}
    return [convert[kind](array) for array in arrays]


@pytest.mark.parametrize("kind", ["pil", "numpy", "torch"])
def test_images_of_many_sizes_make_one_batch(processor, kind):
    several = images(kind)
    ids = processor(several, return_tensors="pt").input_ids
    assert (ids.shape, ids.dtype) == ((7, 18 * 18), torch.int64)
    one = processor(several[3], return_tensors="pt").input_ids
    assert torch.equal(one, ids[3:4])
    values = processor(several, return_tensors="pt", do_color_quantize=False).pixel_values
    assert (values.shape, values.dtype) == ((7, 3, 18, 18), torch.float32)


def test_four_channels_are_colour_and_transparency(processor):
    """transformers keeps four channels; our palette has three, so the fourth is alpha."""
    several = images("numpy", num_channels=4)
    options = {"input_data_format": "channels_last", "image_mean": 0, "image_std": 1, "do_color_quantize": False}
    values = processor(several, return_tensors="pt", **options).pixel_values
    assert values.shape == (7, 3, 18, 18)
    assert 0 <= values.min() < values.max() <= 1
    clear = [image.copy() for image in several]
    for image in clear:
        image[..., 3] = 0
    assert processor(clear, return_tensors="pt", **options).pixel_values.eq(1).all()  # the white background


def test_every_field_is_in_the_json(processor):
    fields = json.loads(processor.to_json_string())
    for name, value in FIELDS.items():
        assert np.array_equal(fields[name], value) if name == "clusters" else fields[name] == value, name


def test_every_field_is_an_attribute(processor):
    for name, value in FIELDS.items():
        found = getattr(processor, name)
        assert np.allclose(found, value) if name == "clusters" else found == value, name


def test_a_file_gives_back_the_same_processor(processor, tmp_path):
    processor.to_json_file(tmp_path / "image_processor.json")
    again = ImageGPTImageProcessor.from_json_file(tmp_path / "image_processor.json")
    assert again.to_dict() == processor.to_dict()
    text = (tmp_path / "image_processor.json").read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"


def test_instances_share_no_attributes():
    first, second = ImageGPTImageProcessor(), ImageGPTImageProcessor()
    before = second.to_dict()
    first.size["height"] = 7
    first.image_mean, first.do_resize = (0.1, 0.2, 0.3), False
    assert second.to_dict() == before
    assert second._merge_options({}) != first._merge_options({"do_color_quantize": False})
    again = ImageGPTImageProcessor(size=(given := {"height": 3, "width": 3}))
    again.size["height"] = 9
    assert given == {"height": 3, "width": 3}


def test_results_can_be_cast_and_moved(processor):
    batch = processor(images("torch"), return_tensors="pt", do_color_quantize=False)
    assert batch.to(torch.float16).pixel_values.dtype == torch.float16
    assert batch.to("meta", torch.bfloat16).pixel_values.dtype == torch.bfloat16
    assert batch.pixel_values.device.type == "meta"
    with pytest.raises(TypeError):
        batch.to(torch.bfloat16, "cpu")
    ids = processor(images("torch"), return_tensors="pt")
    assert ids.to(torch.float16).input_ids.dtype == torch.int64  # whole numbers stay as they are


@pytest.mark.parametrize("backend", ["pil", "torchvision"])
def test_auto_classes_load_either_librarys_folder(processor, backend, tmp_path):
    """Ours is registered for both of transformers' backends; a folder written by either library loads."""
    theirs = Reference(**{**FIELDS, "clusters": PALETTE.clusters.tolist()})
    classes = {"pil": ImageGPTImageProcessor, "torchvision": ImageGPTImageProcessor}
    AutoImageProcessor.register(ImageGPTConfig, image_processor_classes=classes, exist_ok=True)
    try:
        for name, saved in (("ours", processor), ("theirs", theirs)):
            saved.save_pretrained(tmp_path / name)
            fields = json.loads((tmp_path / name / "preprocessor_config.json").read_text())
            fields.pop("image_processor_type")  # so that it is looked up by the model's configuration
            (tmp_path / name / "preprocessor_config.json").write_text(json.dumps(fields))
            loaded = AutoImageProcessor.from_pretrained(tmp_path / name, config=ImageGPTConfig(), backend=backend)
            assert type(loaded) is ImageGPTImageProcessor
            wanted = processor.to_dict() if name == "ours" else {**processor.to_dict(), "resize_mode": "squash"}
            assert loaded.to_dict() == wanted
    finally:
        IMAGE_PROCESSOR_MAPPING._extra_content.pop(ImageGPTConfig)
