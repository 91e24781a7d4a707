"""`imagegpt convert`, `export`, `inspect` and `download` on random checkpoints."""

import json
import re

import numpy as np
import pytest
import torch

from imagegpt import ColorPalette, ImageGPTForCausalImageModeling
from imagegpt.checkpoints.tensor_bundle import read_bundle, write_bundle
from openai_oracle import random_variables


@pytest.fixture
def bundles(workplace):
    """Checkpoints "ar" and "bert" with the palette beside them."""
    write_bundle("ar", {**random_variables(), "global_step": np.int64(9), "model/wpe/Adam": np.zeros(3)}, num_shards=2)
    write_bundle("bert", random_variables(bert=True))
    ColorPalette.grey(11).save(workplace / "kmeans_centers.npy")
    return workplace


def one_line(text):
    return " ".join(text.split())


def test_convert_and_export_openai(run, bundles):
    code, out, err = run("convert", "openai", "ar", "model")
    assert code == 0, err
    assert "skipped 2 variables that are not weights, such as global_step" in out
    assert re.search(r"autoregressive, [\d,]+ parameters, step 9: model", out)
    assert "Next: imagegpt info ./model" in err
    code, out, err = run("export", "openai", "./model", "back", "--shards", 3)
    assert code == 0, err
    assert len(list(bundles.glob("back.data-*-of-00003"))) == 3
    before, after = read_bundle("ar"), read_bundle("back")
    assert all(np.array_equal(before[name], after[name]) for name in after)
    card = (bundles / "model" / "README.md").read_text()
    assert "`imagegpt convert openai ar model`" in card


def test_convert_bert_with_biases(run, bundles):
    assert run("convert", "openai", "bert", "model", "--objective", "bert", "--biases")[0] == 0
    config = ImageGPTForCausalImageModeling.from_pretrained("model").config
    assert (config.is_causal, config.use_bias) == (False, True)


def test_convert_transformers(run, bundles):
    run("convert", "openai", "ar", "model")
    model = ImageGPTForCausalImageModeling.from_pretrained("model")
    (bundles / "old").mkdir()
    torch.save(model.state_dict(), bundles / "old" / "pytorch_model.bin")
    for name in ("config.json", "preprocessor_config.json"):
        (bundles / "old" / name).write_bytes((bundles / "model" / name).read_bytes())
    assert run("inspect", "./old")[0] == 0
    code, out, err = run("convert", "transformers", "old", "new")
    assert code == 0, err
    assert out == "converted: new\n"
    again = ImageGPTForCausalImageModeling.from_pretrained("new")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("source", ["ar", "ar.index", "./tiny"])
def test_inspect(run, bundles, source):
    code, out, err = run("inspect", source)
    assert code == 0, err
    if source == "./tiny":
        assert re.search(r"lm_head\.weight +10 x 16 +float32 +640", out)
    else:
        assert re.search(r"model/h0/attn/q_proj +2 x 4 x 8 +float32 +256", out)
        assert re.search(r"global_step +scalar +int64 +8", out)
    assert re.search(r"^\d+ tensors, [\d,]+ bytes$", out, re.MULTILINE)


def test_json(run, bundles, monkeypatch):
    code, out, _ = run("convert", "openai", "ar", "model", "--json")
    converted = json.loads(out)
    assert code == 0
    assert converted["num_parameters"] == sum(
        weight.numel() for weight in ImageGPTForCausalImageModeling.from_pretrained("model").parameters()
    )
    assert {key: converted[key] for key in ("objective", "step", "num_classes", "path")} == {
        "objective": "ar", "step": 9, "num_classes": 0, "path": "model",
    }  # fmt: skip
    assert converted["ignored"] == ["global_step", "model/wpe/Adam"]
    _, out, _ = run("export", "openai", "./model", "back", "--json")
    assert json.loads(out) == {"num_variables": len(read_bundle("back")), "path": "back"}
    _, out, _ = run("inspect", "back", "--json")
    inspected = json.loads(out)
    assert {"name": "model/sos", "shape": [8], "dtype": "float32", "nbytes": 32} in inspected["tensors"]
    assert inspected["bytes"] == sum(tensor["nbytes"] for tensor in inspected["tensors"])

    def place_files(urls, out, progress, *, max_bytes):
        out.mkdir()
        for name in urls:
            (out / name).write_bytes(b"abc")
        return out / "model.ckpt-131000"

    monkeypatch.setattr("imagegpt.checkpoints.openai_download.download_checkpoint", place_files)
    _, out, _ = run("download", "s", "--step", 131000, "--out", "igpt", "--json")
    assert json.loads(out) == {"num_files": 34, "bytes": 102, "path": "igpt/model.ckpt-131000"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["convert", "openai", "none", "model"], "there is no TensorFlow checkpoint none: none.index is missing"),
        (
            ["convert", "openai", "ar", "model", "--objective", "bert"],
            "it has a start token, model/sos",
        ),
        (["convert", "openai", "ar", "model", "--palette", "digits"], "the palette has 17 colours and ar 11"),
        (["convert", "openai", "ar", "model", "--palette", "none"], "there is no palette 'none'"),
        (["convert", "openai", "ar", "tiny"], "tiny exists"),
        (["convert", "openai", "ar", "no/model"], "there is no folder"),
        (["convert", "transformers", "none", "model"], "there is no folder ./none: check the path"),
        (["export", "openai", "./tiny", "ar"], "ar.index exists already: give --force to overwrite it"),
        (["export", "openai", "./tiny", "no/x"], "there is no folder no"),
        (["inspect", "none"], "there is no model 'none'"),
        (["inspect", "."], "contains no weights: expected model.safetensors or pytorch_model.bin in it"),
        (["inspect", "/"], "/ contains no weights: expected model.safetensors or pytorch_model.bin in it"),
        (["convert", "openai", ".", "model"], ". is a folder: give the prefix of the checkpoint's files"),
        (["convert", "openai", "/", "model"], "/ is a folder: give the prefix of the checkpoint's files"),
        (
            ["download", "s", "--step", "200000", "--out", "igpt"],
            "--step is 200000: there are 131000, 262000, 524000, 1000000",
        ),
        (["download", "s", "--out", "no/igpt"], "there is no folder no"),
    ],
)
def test_errors_are_one_sentence(words, message, run, bundles):
    before = sorted(path.name for path in bundles.iterdir())
    code, _, err = run(*words)
    assert code == 2
    assert message in one_line(err)
    assert "Traceback" not in err
    assert sorted(path.name for path in bundles.iterdir()) == before


def test_missing_palette(run, bundles):
    (bundles / "kmeans_centers.npy").unlink()
    code, _, err = run("convert", "openai", "ar", "model")
    assert code == 2
    assert "there is no kmeans_centers.npy next to ar: give the palette with --palette" in one_line(err)
    assert not (bundles / "model").exists()
