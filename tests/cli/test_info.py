"""`imagegpt info`: the numbers of a model one can work out by hand."""

import json

import pytest

from imagegpt import ColorPalette
from imagegpt.common.memory import readable_bytes, with_unit


def test_a_models_facts(run, workplace):
    status, out, err = run("info", "./tiny")
    assert (status, err) == (0, "")
    facts = {line[:22].strip(): line[22:].strip() for line in out.splitlines()}
    assert facts["model"] == "./tiny"
    assert facts["kind"] == "autoregressive"
    assert facts["blocks, width, heads"] == "2, 16, 2"
    # Per block 12 x 16^2 weights, 9 x 16 biases, 2 x 16 gains; 16 gains; (11 + 16) x 16 embeddings; 16 x 10 logits.
    assert facts["parameters"] == f"{2 * (3072 + 144 + 32) + 16 + 432 + 160:,}" == "7,104"
    assert facts["weights"] == "28.4 kB in float32, 14.4 kB in bfloat16"
    assert facts["keys and values"] == "4.1 kB in float32, 2.05 kB in bfloat16, for one image"
    assert facts["image"] == "4 x 4 pixels, resized by crop"
    assert facts["palette"] == f"10 grey levels, {ColorPalette.grey(10).fingerprint}"


def test_no_weights_are_needed(run, workplace, tiny_folder):
    (workplace / "bare").mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (workplace / "bare" / name).write_text((tiny_folder / name).read_text())
    assert run("info", "./bare")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no model 'nowhere'"),
        (["./empty"], "empty holds no config.json"),
        (["./gpt2"], "gpt2/config.json describes a model of type 'gpt2': this package loads 'imagegpt' only"),
    ],
)
def test_bad_input_is_one_sentence(run, workplace, arguments, message):
    (workplace / "empty").mkdir()
    (workplace / "gpt2").mkdir()
    (workplace / "gpt2/config.json").write_text(json.dumps({"model_type": "gpt2"}))
    status, out, err = run("info", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("num", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_499, "999 kB"), (999_500, "1 MB"), (304e6, "304 MB")],
)
def test_units(num, text):
    assert readable_bytes(num) == text
    assert with_unit(num, "FLOP") == text.replace("B", "FLOP")
