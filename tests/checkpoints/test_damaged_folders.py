"""Every defect of a model folder is a one-sentence error with the file's name, in every loader.

Each case was something else before: another library's exception, a message of many lines, or time and memory without
bound.
"""

import json
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers import tiny_model
from imagegpt import (
    ColorPalette,
    ImageGPTConfig,
    ImageGPTForCausalImageModeling,
    ImageGPTImageProcessor,
    ImageGPTModel,
    ImageGPTPipeline,
)
from imagegpt.checkpoints.listing import list_tensors
from imagegpt.checkpoints.loading import load_config, load_model, load_processor


@pytest.fixture
def folder(tmp_path):
    """A folder with a model and its processor."""
    tiny_model().save_pretrained(tmp_path / "model")
    ImageGPTImageProcessor(ColorPalette.grey(16), size=4).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(path, **fields):
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **fields}))


def change_header(path, edit):
    """Edit the JSON header of a safetensors file."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    edit(header)
    new = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + content[8 + length :])


def refused(load, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load()
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 1000


WHOLE = "it must be an integer from 1 to 1,024"
DEEP = "[" * 100_000 + "]" * 100_000

CONFIGS = {
    "no object": ("[1]", r"config.json: the content is \[1\]: it must be an object"),
    "no JSON": ("{", "config.json is not JSON"),
    "no text": (b"\xff\xfe", "config.json is not JSON"),
    "nested too deeply": (DEEP, "config.json is nested too deeply"),
    "an unknown key is nested too deeply": (
        {"note": json.loads("[" * 100 + "]" * 100)}, "config.json is nested too deeply",
    ),
    "as many blocks as nobody builds": ({"n_layer": 200_000}, f"n_layer is 200000: {WHOLE}"),
    "a number of 1,000 digits": ({"n_layer": 10**1000}, f"n_layer is 1000.*: {WHOLE}"),
    "a list of a million numbers": ({"resid_pdrop": [0.5] * 1_000_000}, "resid_pdrop is .*: it must be a number of"),
    "a long text": ({"shift_inputs": "x" * 100_000}, "'shift_inputs' expected bool, got str"),
    "2^31 classes": ({"num_labels": 1 << 31}, "num_labels is 2147483648: it must be an integer from 1 to 65,536"),
    "classes that are no map": ({"id2label": "x"}, "id2label is 'x': it must be an object"),
    "classes with a gap": ({"id2label": {"0": "a", "2": "b"}}, "id2label names 2 classes: it must number them from 0"),
    "too many classes": ({"id2label": {str(i): "" for i in range(70_000)}}, "id2label names 70,000 classes"),
    "a class without a number": ({"label2id": {"a": []}}, r"label2id.a is \[\]"),
    "a dtype that is none": ({"dtype": "nn"}, "dtype is 'nn': it must be one of float32, float16"),
    "a dtype that is a number": ({"torch_dtype": 3}, "torch_dtype is '3': it must be one of"),
    "a method": ({"to_dict": 3}, "to_dict is a method or attribute of a configuration, not a field"),
    "another method": ({"kept_heads": 3}, "kept_heads is a method or attribute"),
    "a property": ({"num_colors": 3}, "num_colors is a method or attribute"),
    "Python's own": ({"__class__": 3}, "__class__ is a method or attribute"),
    "a method that is null": ({"to_dict": None}, "to_dict is a method or attribute"),
    "what the class maps": ({"attribute_map": {}}, "attribute_map is a method or attribute"),
    "Python's own that is null": ({"__class__": None}, "__class__ is a method or attribute"),
    "architectures": ({"architectures": [3]}, "architectures.0 is 3: it must be text"),
    "layers of other models": ({"layer_types": 0.5}, "layer_types is not supported by ImageGPT"),
    "a model of the model": ({"text_config": {"a": 1}}, "text_config is not supported by ImageGPT"),
    "another file": ({"configuration_files": ["config.4.0.0.json"]}, "configuration_files refers to other files"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), CONFIGS.values(), ids=CONFIGS.keys())
def test_a_configuration(folder, content, message):
    path = folder / "config.json"
    if isinstance(content, dict):
        change(path, **content)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for load in (load_config, ImageGPTConfig.from_pretrained, ImageGPTForCausalImageModeling.from_pretrained):
        refused(lambda load=load: load(folder), rf"^{folder}.*{message}")


def test_unknown_config_keys_are_kept(folder):
    old = {
        "is_decoder": False, "use_bfloat16": False, "gradient_checkpointing": False, "my_note": {"a": [1]},
        "max_length": 20, "torch_dtype": "float32", "transformers_version": "4.40.0", "per_layer_config": None,
        "use_return_dict_of_mine": True, "id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1},
    }  # fmt: skip
    change(folder / "config.json", **old)
    config = ImageGPTConfig.from_pretrained(folder)
    assert config.my_note == {"a": [1]}
    assert config.id2label == {0: "a", 1: "b"}
    load_model(folder)


@pytest.mark.parametrize(
    "fields", [{"n_layer": 1024}, {"n_embd": 65_536}, {"n_positions": 1 << 20, "n_inner": 1 << 20}]
)
def test_model_larger_than_its_weights_is_not_built(folder, fields):
    change(folder / "config.json", **fields)
    message = (
        r"config.json describes a model with [\d,]+ parameters .*, but the weights have only [\d,]+ bytes: get both"
    )
    for load in (load_model, ImageGPTModel.from_pretrained, ImageGPTPipeline.from_pretrained):
        refused(lambda load=load: load(folder), message)


def test_larger_model_by_argument(folder):
    grown = tiny_model().config.to_dict() | {"n_layer": 400}
    model = ImageGPTModel.from_pretrained(folder, config=ImageGPTConfig.from_dict(grown))
    assert len(model.h) == 400


WTE = "transformer.wte.weight"
HEADERS = {
    "integers": (lambda h: h[WTE].update(dtype="I32"), f"{WTE} is of type int32, but weights must be"),
    "complex numbers": (
        lambda h: h["transformer.h.0.ln_1.weight"].update(dtype="C64", shape=[16]), "is of type C64, but weights",
    ),
    "an unknown type": (lambda h: h[WTE].update(dtype="X"), "is damaged or cut short"),
    "a huge shape": (lambda h: h[WTE].update(shape=[1 << 40, 32]), "is damaged or cut short"),
    "a place beyond the file": (lambda h: h[WTE].update(data_offsets=[0, 1 << 42]), "is damaged or cut short"),
    "a hole": (lambda h: h.pop(WTE), "is damaged or cut short"),
    "another library's": (
        lambda h: h.update(__metadata__={"format": "flax"}), "contains weights for 'flax', not for PyTorch",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "message"), HEADERS.values(), ids=HEADERS.keys())
def test_a_header_of_safetensors(folder, edit, message):
    change_header(folder / "model.safetensors", edit)
    for load in (load_model, ImageGPTForCausalImageModeling.from_pretrained, ImageGPTModel.from_pretrained):
        refused(lambda load=load: load(folder), f"^{folder}/model.safetensors.*{message}")


def test_safetensors_header_of_terabytes(folder):
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 40) + path.read_bytes()[8:])
    refused(lambda: ImageGPTModel.from_pretrained(folder), "model.safetensors is damaged or cut short")
    refused(lambda: list_tensors(str(folder)), "model.safetensors is damaged or cut short")


def test_eight_bit_floats_are_listed_with_their_bytes(folder):
    change_header(folder / "model.safetensors", lambda h: h[WTE].update(dtype="F8_E4M3", shape=[17, 128]))
    assert next(one.nbytes for one in list_tensors(str(folder)) if one.name == WTE) == 17 * 128


INDEXES = {
    "no map": ({"weight_map": 3, "metadata": {}}, "weight_map is 3: it must be an object"),
    "numbers for names": ({"weight_map": {WTE: 3}, "metadata": {}}, f"weight_map.{WTE} is 3: it must be text"),
    "no files": ({"weight_map": {}, "metadata": {}}, "weight_map names no file"),
    "no metadata": ({"weight_map": {WTE: "model.safetensors"}}, "metadata is missing"),
    "a file that is not there": ({"weight_map": {WTE: "a.safetensors"}, "metadata": {}}, "names a.safetensors, which"),
}


@pytest.mark.parametrize(("index", "message"), INDEXES.values(), ids=INDEXES.keys())
def test_an_index_of_weights(folder, index, message):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for load in (load_model, ImageGPTForCausalImageModeling.from_pretrained):
        refused(lambda load=load: load(folder), f"^{folder}/model.safetensors.index.json.*{message}")


PICKLES = {
    "cut short": lambda weights, path: path.write_bytes(path.read_bytes()[:3000]),
    "empty": lambda weights, path: path.write_bytes(b""),
    "text": lambda weights, path: path.write_bytes(b"no pickle"),
    "a list": lambda weights, path: torch.save(list(weights.values()), path),
    "a number among weights": lambda weights, path: torch.save({**weights, "a": 3}, path),
    "sparse": lambda weights, path: torch.save({**weights, WTE: weights[WTE].to_sparse()}, path),
    "without numbers": lambda weights, path: torch.save({**weights, WTE: weights[WTE].to("meta")}, path),
}


@pytest.mark.parametrize("damage", PICKLES.values(), ids=PICKLES.keys())
def test_pickled_weights(folder, damage):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save(weights, path)
    damage(weights, path)
    for load in (load_model, ImageGPTModel.from_pretrained, lambda folder: list_tensors(str(folder))):
        refused(lambda load=load: load(folder), r"pytorch_model.bin (is damaged, or )?contains more than weights")


def test_huge_pickle_is_refused_quickly(folder):
    """Regression: torch took more than 10 s to reject a pickle followed by 50 MB of zeros."""
    path = folder / "pytorch_model.bin"
    torch.save(load_file(folder / "model.safetensors"), path)
    (folder / "model.safetensors").unlink()
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content[:128] + bytes(5_000_000) if name.endswith(".pkl") else content)
    refused(lambda: load_model(folder), r"pytorch_model.bin is damaged, .*its list of tensors has 5,000,128 bytes")


GENERATIONS = {
    "no object": ("3", "the content is 3: it must be an object"),
    "nested too deeply": (DEEP, "is nested too deeply"),
    "a number of pixels that is none": ('{"max_new_tokens": {}}', r"transformers rejects it \(TypeError"),
    "a wrong kind of settings": ('{"compile_config": [1]}', r"transformers rejects it \(ValueError"),
    "a method": ('{"validate": 1}', "validate is a method of GenerationConfig, not a sampling option"),
    "megabytes": (f'{{"note": "{"x" * 2**20}"}}', "has more than 1,048,576 bytes"),
}


@pytest.mark.parametrize(("content", "message"), GENERATIONS.values(), ids=GENERATIONS.keys())
def test_settings_of_generation(folder, content, message):
    (folder / "generation_config.json").write_text(content)
    for load in (load_model, ImageGPTForCausalImageModeling.from_pretrained):
        refused(lambda load=load: load(folder), f"^{folder}/generation_config.json:? {message}")


ADAPTERS = {
    "no object": ("[]", "the content is"),
    "a huge rank": ({"r": 1 << 40}, r"r is 1099511627776: it must be an integer from 1 to 4,096"),
    "a huge rank for one": ({"rank_pattern": {"c_attn": 1 << 40}}, r"rank_pattern.c_attn is 1099511627776"),
    "modules that are a number": ({"modules_to_save": 3}, r"the adapter cannot be applied to the model \(TypeError"),
}


@pytest.mark.parametrize(("content", "message"), ADAPTERS.values(), ids=ADAPTERS.keys())
def test_an_adapter(folder, content, message):
    pytest.importorskip("peft")
    path = folder / "adapter_config.json"
    lora = {"peft_type": "LORA", "r": 2, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    path.write_text(content if isinstance(content, str) else json.dumps(lora | content))
    for load in (load_model, ImageGPTForCausalImageModeling.from_pretrained):
        refused(lambda load=load: load(folder), f"^{path}: {message}")


def test_weights_of_an_adapter(folder):
    pytest.importorskip("peft")
    lora = {"peft_type": "LORA", "r": 2, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    (folder / "adapter_config.json").write_text(json.dumps(lora))
    (folder / "adapter_model.safetensors").write_bytes(b"x" * 100)
    refused(lambda: load_model(folder), f"^{folder}/adapter_model.safetensors is damaged or cut short")


PROCESSORS = {
    "no object": ("[1]", "the content is"),
    "no JSON": ("{", "is not JSON"),
    "nested too deeply": (DEEP, "is nested too deeply"),
    "ragged colours": ({"clusters": [[0, 0, 0], [1]]}, "the palette is not an array of numbers"),
    "colours that are text": ({"clusters": "red"}, "the palette is not an array of numbers"),
    "100,000 colours": ({"clusters": [[0, 0, 0]] * 100_000}, "the palette has 100000 colours: it must have 2 to"),
    "colours that are not finite": ({"clusters": [[0, 0, float("nan")]] * 2}, "colour 0 of the palette is .* finite"),
    "a filter that is a list": ({"resample": [1]}, "resample is .1.: choose one of Pillow's filters"),
    "a switch that is a list": ({"do_resize": [0.5] * 1_000_000}, "do_resize is .*: it must be True or False"),
    "a background beyond all": ({"background": [float("inf")] * 3}, "background is .*: give .red, green, blue."),
    "a device that is a number": ({"device": 10**30}, "there is no device '1000.*' here"),
    "a huge size": ({"size": {"height": 1 << 40, "width": 4}}, "size is .*: each side must be an integer from 1"),
    "an unknown option": ({"x" * 1000: 1}, "there is no option 'x+"),
}


@pytest.mark.parametrize(("content", "message"), PROCESSORS.values(), ids=PROCESSORS.keys())
def test_a_processor(folder, content, message):
    path = folder / "preprocessor_config.json"
    if isinstance(content, dict):
        change(path, **content)
    else:
        path.write_text(content)
    config = load_config(folder)
    for load in (lambda folder: load_processor(folder, config), ImageGPTImageProcessor.from_pretrained):
        refused(lambda load=load: load(folder), f"^{folder}.*{message}")


def npy(shape, descr="<f4", version=1, content=bytes(16 * 3 * 4)):
    """An .npy file with this header."""
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header.encode("latin-1") + content


ARRAYS = {
    "a shape larger than the file": (npy("(10**12, 3)".replace("10**12", str(10**12))), "its header announces"),
    "a shape that overflows": (npy(f"({10**20}, 3)"), "its header announces"),
    "a negative shape": (npy("(-1, 3)"), "its header announces"),
    "bytes behind it": (npy("(16, 3)", content=bytes(300)), "its header announces .16, 3. of float32, and 300 bytes"),
    "objects": (npy("(2, 3)", "|O"), "Object arrays would have to be unpickled"),
    "text": (npy("(16, 3)", "<U1"), "the palette is not an array of numbers"),
    "columns with names": (npy("(16, 3)", version=3), r"its header has version \(3, 0\)"),
    "a header nested too deeply": (npy("(" * 200 + ")" * 200), "is not a readable .npy palette"),
    "a header of zeros": (npy("(16, 3)")[:12] + bytes(50) + npy("(16, 3)")[62:], "is not a readable .npy palette"),
    "a header of many minus signs": (npy("-" * 5_000 + "1"), "is not a readable .npy palette"),
}


@pytest.mark.parametrize(("content", "message"), ARRAYS.values(), ids=ARRAYS.keys())
def test_a_palette_of_numpy(folder, content, message):
    (folder / "preprocessor_config.json").unlink()
    path = folder / "kmeans_centers.npy"
    path.write_bytes(content)
    for load in (ColorPalette.load, ImageGPTPipeline.from_pretrained):
        refused(lambda load=load: load(folder), f"^{path} .*{message}")


def test_a_palette_file_of_terabytes_is_not_read(folder):
    path = folder / "kmeans_centers.npy"
    np.save(path, np.zeros((16, 3), np.float32))
    with path.open("r+b") as file:
        file.truncate(2**40)
    refused(lambda: ColorPalette.load(path), "has 1,099,511,627,776 bytes, and no palette has more than 4,194,304")
