"""Every file format has a version, and other versions are refused with one sentence."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import imagegpt
from imagegpt import ColorPalette, ImageGPTImageProcessor
from imagegpt.data import hashing
from imagegpt.data.encoded import EncodedDataset
from imagegpt.data.encoding_folder import ENCODING_FORMAT
from imagegpt.data.identity import DATA_FORMAT, DataRecord
from imagegpt.files.versions import FORMAT_KEY
from imagegpt.jobs.encode import encode
from imagegpt.jobs.sampling_settings import RUN_FORMAT, SamplingSettings, read_run, write_run
from imagegpt.sampling import SamplingRules
from imagegpt.training.checkpoint import CHECKPOINT_FORMAT
from imagegpt.training.distributed import DistributedContext
from imagegpt.training.lr_finder import RATES_FORMAT, LearningRateSearch
from imagegpt.training.recipe import RECIPE_FORMAT
from imagegpt.training.recipe_io import parse_recipe, read_recipe
from imagegpt.training.run import Run

ALONE = DistributedContext(torch.device("cpu"))
RECIPE = parse_recipe(
    {
        "model": {"n_layer": 1, "n_embd": 8, "n_head": 1},
        "data": {"train": "digits"},
        "training": {"num_steps": 1, "warmup_steps": 0, "batch_size": 2},
        "monitoring": {"samples": 0},
    }
)


def run(out):
    Run(RECIPE, out, ALONE).train()
    return lambda: Run(RECIPE, out, ALONE)


def encoding(out):
    np.save(out.parent / "a.npy", np.zeros((3, 4, 4), np.uint8))
    encode(out.parent / "a.npy", out, ImageGPTImageProcessor(ColorPalette.grey(4), size=4))
    return lambda: EncodedDataset(out)


def record(out):
    run(out)
    return lambda: DataRecord.read(out)


def recipe(out):
    run(out)
    return lambda: read_recipe(out / "recipe.yaml")


def samples(out):
    out.mkdir()
    settings = SamplingSettings(
        model="m", fingerprint="f", precision="float32", seed=0, rules=SamplingRules(), file_format="png",
        shard_size=1, batch_size=1, backend="cpp", num=1, version="1",
    )  # fmt: skip
    write_run(out, settings)
    return lambda: read_run(out)


def rates(out):
    LearningRateSearch(RECIPE, out, ALONE)
    return lambda: LearningRateSearch(RECIPE, out, ALONE)


FORMATS = {
    "ENCODING_FORMAT": (encoding, "encoding.json", ENCODING_FORMAT),
    "DATA_FORMAT": (record, "data.json", DATA_FORMAT),
    "RECIPE_FORMAT": (recipe, "recipe.yaml", RECIPE_FORMAT),
    "CHECKPOINT_FORMAT": (run, "checkpoints/step-00000001/trainer_state.json", CHECKPOINT_FORMAT),
    "RUN_FORMAT": (samples, "run.json", RUN_FORMAT),
    "RATES_FORMAT": (rates, "rates.json", RATES_FORMAT),
}
ELSEWHERE = {"CACHE_FORMAT"}  # hashes that are computed again: tests/data/test_identity.py


def test_every_versioned_format_is_listed_here():
    source = Path(imagegpt.__file__).parent
    found = re.findall(r"^([A-Z]+_FORMAT) = \d+", "\n".join(p.read_text() for p in source.rglob("*.py")), re.MULTILINE)
    assert sorted(found) == sorted({*FORMATS, *ELSEWHERE})


@pytest.mark.parametrize("version", [99, None, "1"])
@pytest.mark.parametrize("name", FORMATS)
def test_another_version_is_one_sentence(tmp_path, monkeypatch, name, version):
    make, file, current = FORMATS[name]
    read = make(tmp_path / "out")
    read()
    path = tmp_path / "out" / file
    text = path.read_text()
    if file.endswith(".json"):
        content = json.loads(text)
        assert content.pop(FORMAT_KEY) == current
        path.write_text(json.dumps(content if version is None else {**content, FORMAT_KEY: version}))
    else:
        assert text.startswith(f"{FORMAT_KEY}: {current}\n")
        if version is None:
            pytest.skip("recipes that people write need no version")
        path.write_text(text.replace(f"{FORMAT_KEY}: {current}", f"{FORMAT_KEY}: {json.dumps(version)}"))
    if name == "CHECKPOINT_FORMAT":
        monkeypatch.setattr("imagegpt.training.checkpoint.damage_of", lambda _: None)
    with pytest.raises(ValueError, match=rf"has format version .*, this imagegpt reads {current}: ") as caught:
        read()
    assert "\n" not in str(caught.value)


def test_a_cache_of_another_version_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(hashing, "_SETTLED_NS", -1)
    np.save(tmp_path / "a.npy", np.zeros((3, 4, 4), np.uint8))
    source = imagegpt.data.sources.registry.open_images(tmp_path / "a.npy")
    first = hashing.pixel_hashes(source).hashes
    (path,) = (tmp_path / "imagegpt" / "hashes").iterdir()
    assert path.read_bytes().startswith(b"imagegpt hashes %d\n" % hashing.CACHE_FORMAT)
    monkeypatch.setattr(hashing, "_HEADER", b"imagegpt hashes 9\n")
    read = []
    several = hashing._hash_several
    monkeypatch.setattr(hashing, "_hash_several", lambda *given: read.append(1) or several(*given))
    assert (hashing.pixel_hashes(source).hashes == first).all()
    assert read == [1]
