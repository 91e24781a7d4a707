"""Model names, strict loading with one-sentence errors, and registration with the `Auto...` classes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from imagegpt import (
    ColorPalette,
    ImageGPTConfig,
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
    ImageGPTImageProcessor,
)
from imagegpt.checkpoints import registry
from imagegpt.checkpoints.loading import find_folder, load_config, load_model, load_processor
from imagegpt.checkpoints.registry import bundled_models, find_local_folder

FIELDS = {"vocab_size": 11, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "tiny"
    ImageGPTForCausalImageModeling(ImageGPTConfig(**FIELDS)).save_pretrained(path)
    ImageGPTImageProcessor(ColorPalette.grey(10), size=4).save_pretrained(path)
    return path


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with one bundled model, "letters"."""
    (tmp_path / "package/pretrained/letters").mkdir(parents=True)
    (tmp_path / "package/pretrained/empty").mkdir()
    config = tmp_path / "package/pretrained/letters/config.json"
    config.write_text(json.dumps(ImageGPTConfig(**FIELDS).to_dict()))
    monkeypatch.setattr(registry.importlib.resources, "files", lambda name: tmp_path / "package")
    monkeypatch.chdir(tmp_path)
    return config.parent


def test_names_are_resolved_in_documented_order(package, tmp_path):
    assert find_local_folder("letters") == package
    (tmp_path / "letters").mkdir()
    (tmp_path / "owner/model").mkdir(parents=True)
    assert find_local_folder("letters") == package
    assert find_local_folder("./letters") == Path("letters")
    assert find_local_folder(Path("letters")) == package
    assert find_local_folder("owner/model") == Path("owner/model")
    assert find_local_folder("openai/imagegpt-small") is None


def test_bundled_models_are_described_by_their_cards(package):
    (model,) = bundled_models()
    assert (model.name, model.folder, model.description) == ("letters", package, "no model card")
    card = "---\nlicense: apache-2.0\n---\n\n# Letters\n\nDraws letters of\n8x8 pixels. They are small.\n\nMore."
    (package / "README.md").write_text(card)
    assert bundled_models()[0].description == "Draws letters of 8x8 pixels"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("letter", r"there is no model 'letter': did you mean 'letters'\? known are letters, openai/imagegpt-small"),
        ("qqq", r"there is no model 'qqq': known are letters, openai/imagegpt-small"),
        ("", "there is no model ''"),
        ("a/b/c", "there is no model 'a/b/c'"),
        ("owner/../x", r"there is no model 'owner/\.\./x'"),
        ("./nowhere", "there is no folder ./nowhere: check the path"),
        ("/nowhere", "there is no folder /nowhere: check the path"),
        (Path("nowhere"), "there is no folder nowhere: check the path"),
    ],
)
def test_unknown_names_are_an_error(package, name, message):
    with pytest.raises((ValueError, FileNotFoundError), match=f"^{message}"):
        find_local_folder(name)


def test_file_instead_of_folder_is_an_error(folder):
    with pytest.raises(ValueError, match=r"config\.json is a file: give the folder that contains config\.json"):
        find_local_folder(str(folder / "config.json"))


def test_without_a_network_the_hub_is_one_sentence():
    with pytest.raises(
        ConnectionError, match=r"^'openai/imagegpt-small' at revision 'x' is not on this machine and hugg"
    ):
        find_folder("openai/imagegpt-small", revision="x")


def test_a_revision_is_for_the_hub_only(folder):
    with pytest.raises(
        ValueError, match=r"^revision 'main' was given for .*tiny', which is not on the hub: leave it out"
    ):
        find_folder(folder, revision="main")


def test_save_and_load_round_trip(folder):
    saved = ImageGPTForCausalImageModeling.from_pretrained(folder)
    model = load_model(find_folder(folder))
    assert not model.training
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), model.parameters(), strict=True))
    processor = load_processor(folder, model.config)
    assert processor.palette == ColorPalette.grey(10)
    half = load_model(folder, dtype=torch.bfloat16)
    assert (half.lm_head.weight.dtype, half.transformer.ln_f.weight.dtype) == (torch.bfloat16, torch.float32)


def test_a_half_precision_checkpoint_computes_in_the_dtype_asked_for(folder):
    load_model(folder, dtype=torch.bfloat16).save_pretrained(folder)
    assert load_model(folder).dtype == torch.float32


def test_kmeans_centers_without_processor_config(folder):
    (folder / "preprocessor_config.json").unlink()
    ColorPalette.grey(10).save(folder / "kmeans_centers.npy")
    processor = load_processor(folder, load_config(folder))
    assert (processor.palette, processor.size) == (ColorPalette.grey(10), {"height": 4, "width": 4})


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def truncate(path, num_bytes):
    path.write_bytes(path.read_bytes()[:num_bytes])


def edit_json(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


DAMAGES = {
    "a weight is missing": (
        lambda f: change_weights(f, lambda w: w.pop("lm_head.weight")),
        r"do not match its config\.json and ImageGPTForCausalImageModeling: 1 missing \(lm_head\.weight\)$",
    ),
    "a block is missing": (
        lambda f: change_weights(f, lambda w: [w.pop(n) for n in list(w) if ".h.1." in n]),
        r"10 missing \(transformer\.h\.1\.attn\.c_attn\.bias, .*, \.\.\.\)$",
    ),
    "a weight is left over": (
        lambda f: change_weights(f, lambda w: w.update({"score.weight": torch.zeros(2)})),
        r"1 unexpected \(score\.weight\)$",
    ),
    "a weight has another shape": (
        lambda f: change_weights(f, lambda w: w.update({"transformer.wpe.weight": torch.zeros(9, 16)})),
        r"1 of another shape \(transformer\.wpe\.weight is \[9, 16\], not \[16, 16\]\)$",
    ),
    "the config is another model's": (
        lambda f: edit_json(f / "config.json", n_layer=1),
        r"\d+ unexpected \(transformer\.h\.1\.",
    ),
    "weights are cut short": (
        lambda f: truncate(f / "model.safetensors", 5000),
        r"^\S*model\.safetensors is damaged or cut short \(.*\): get the file again$",
    ),
    "weights are empty": (lambda f: truncate(f / "model.safetensors", 0), "is damaged or cut short"),
    "weights are garbage": (lambda f: (f / "model.safetensors").write_bytes(b"x" * 4000), "is damaged or cut short"),
    "there are no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        "tiny contains no weights: expected model.saf",
    ),
    "there is no config": (
        lambda f: (f / "config.json").unlink(),
        r"tiny contains no config\.json: give a folder written",
    ),
    "the config is cut short": (lambda f: truncate(f / "config.json", 40), r"config\.json is not JSON \("),
    "the config is no mapping": (
        lambda f: (f / "config.json").write_text("[1]"),
        r"the content is \[1\]: it must be an object",
    ),
    "the config is of another type": (
        lambda f: edit_json(f / "config.json", model_type="gpt2"),
        "describes a model of type 'gpt2': this package loads 'imagegpt' only",
    ),
    "the config makes no sense": (
        lambda f: edit_json(f / "config.json", n_head=3),
        r"config\.json: n_embd is 16 and n_head is 3: choose a width",
    ),
    "there is no palette": (
        lambda f: (f / "preprocessor_config.json").unlink(),
        r"tiny contains no palette: expected preprocessor_config\.json or kmeans_centers\.npy",
    ),
    "the palette has another size": (
        lambda f: ImageGPTImageProcessor(ColorPalette.grey(11), size=4).save_pretrained(f),
        r"has 11 colours, the model 10 \(vocab_size 11 is colours and start token\): use the palette",
    ),
    "the image has another size": (
        lambda f: edit_json(f / "preprocessor_config.json", size={"height": 4, "width": 5}),
        "makes images of 4 x 5 = 20 pixels, the model has 16 positions: set its size",
    ),
    "the processor has no colours": (
        lambda f: edit_json(f / "preprocessor_config.json", clusters=None),
        r"preprocessor_config\.json has no palette",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_defective_folder_is_one_sentence(folder, damage, message):
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load_processor(folder, load_model(folder).config)
    assert "\n" not in str(error.value)


def test_classifier_is_not_loaded_as_generative_model(tmp_path):
    ImageGPTForImageClassification(ImageGPTConfig(**FIELDS, num_labels=3)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"1 missing \(lm_head\.weight\); 1 unexpected \(score\.weight\)"):
        load_model(tmp_path)
    assert load_model(tmp_path, ImageGPTForImageClassification).score.weight.shape == (3, 16)


def test_listing_models_does_not_import_torch():
    code = (
        "import sys; from imagegpt.checkpoints import registry as r; r.bundled_models(); print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"


REGISTER = """
import sys
import numpy as np
from PIL import Image
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForImageClassification, pipeline
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING, AutoImageProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_IMAGE_MODELING_MAPPING
import imagegpt

folder = sys.argv[1]
assert type(AutoConfig.from_pretrained(folder)).__module__.startswith("transformers.")
imagegpt.register()
imagegpt.register()
config = AutoConfig.from_pretrained(folder)
assert type(config) is imagegpt.ImageGPTConfig
assert type(AutoModel.from_pretrained(folder)) is imagegpt.ImageGPTModel
assert type(AutoModelForImageClassification.from_pretrained(folder)) is imagegpt.ImageGPTForImageClassification
assert isinstance(AutoImageProcessor.from_pretrained(folder), imagegpt.ImageGPTImageProcessor)
assert type(AutoFeatureExtractor.from_pretrained(folder)) is imagegpt.ImageGPTFeatureExtractor
assert MODEL_FOR_CAUSAL_IMAGE_MODELING_MAPPING[type(config)] is imagegpt.ImageGPTForCausalImageModeling
assert all(issubclass(cls, imagegpt.ImageGPTImageProcessor) for cls in IMAGE_PROCESSOR_MAPPING[type(config)].values())
classify = pipeline("image-classification", model=folder)
assert type(classify.model) is imagegpt.ImageGPTForImageClassification
answer = classify(Image.fromarray(np.zeros((9, 7), np.uint8)))  # a grey image: transformers' processor fails on it
assert {one["label"] for one in answer} == {"LABEL_0", "LABEL_1", "LABEL_2"}, answer
"""


def test_register_auto_classes(tmp_path, forkserver):
    ImageGPTForImageClassification(ImageGPTConfig(**FIELDS, num_labels=3)).save_pretrained(tmp_path)
    ImageGPTImageProcessor(ColorPalette.grey(10), size=4).save_pretrained(tmp_path)
    done = forkserver.run(["-c", REGISTER, tmp_path])
    assert done.returncode == 0, done.stderr


OLD_NAME = """
import json, sys
from pathlib import Path
from transformers import AutoFeatureExtractor
from transformers.models.auto.image_processing_auto import AutoImageProcessor
import imagegpt

folder = Path(sys.argv[1])
imagegpt.register()
extractor = AutoFeatureExtractor.from_pretrained(folder)
assert type(extractor) is imagegpt.ImageGPTFeatureExtractor
assert extractor.size == {"height": 4, "width": 4}
assert extractor.palette.num_colors == 10
assert isinstance(AutoImageProcessor.from_pretrained(folder), imagegpt.ImageGPTImageProcessor)
extractor.save_pretrained(folder)
assert json.loads((folder / "preprocessor_config.json").read_text())["image_processor_type"] == "ImageGPTImageProcessor"
"""


def test_feature_extractor_name_of_transformers_4(tmp_path, forkserver):
    """As in old folders: the feature extractor's name and no image_processor_type; here no config.json either."""
    fields = {"clusters": ColorPalette.grey(10).clusters.tolist(), "size": 4, "resample": 2, "do_resize": True}
    fields["feature_extractor_type"] = "ImageGPTFeatureExtractor"
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    done = forkserver.run(["-c", OLD_NAME, tmp_path])
    assert done.returncode == 0, done.stderr


PIL_NAME = """
import sys
from transformers.models.auto.image_processing_auto import AutoImageProcessor
import imagegpt

imagegpt.register()
assert isinstance(AutoImageProcessor.from_pretrained(sys.argv[1]), imagegpt.ImageGPTImageProcessor)
"""


def test_folder_with_transformers_pillow_class_name(tmp_path, forkserver):
    """Regression: with that name AutoImageProcessor ignored our registration."""
    path = tmp_path / "preprocessor_config.json"
    ImageGPTImageProcessor(ColorPalette.grey(10), size=4).to_json_file(path)
    edit_json(path, image_processor_type="ImageGPTImageProcessorPil")
    done = forkserver.run(["-c", PIL_NAME, tmp_path])
    assert done.returncode == 0, done.stderr
