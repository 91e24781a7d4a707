"""`imagegpt info`: sizes and costs of a model, against numbers worked out by hand."""

import json

import pytest

from imagegpt import ColorPalette
from imagegpt.common.memory import format_bytes, format_si


def test_info_prints_sizes_and_costs(run, workplace):
    status, out, err = run("info", "./tiny")
    assert (status, err) == (0, "")
    facts = {line[:22].strip(): line[22:].strip() for line in out.splitlines()}
    assert facts["model"] == "./tiny"
    assert facts["kind"] == "autoregressive"
    assert facts["blocks, width, heads"] == "2, 16, 2"
    # Per block 12 x 16^2 weights, 9 x 16 biases, 2 x 16 gains; 16 gains; (11 + 16) x 16 embeddings; 16 x 10 logits.
    assert facts["parameters"] == f"{2 * (3072 + 144 + 32) + 16 + 432 + 160:,}" == "7,104"
    assert facts["weights"] == "28.4 kB in float32, 14.4 kB in bfloat16"
    assert facts["keys and values"] == "4.1 kB in float32, 2.05 kB in bfloat16, per image"
    assert facts["image"] == "4 x 4 pixels, resized by crop"
    assert facts["palette"] == f"10 grey levels, {ColorPalette.grey(10).fingerprint}"


def test_info_as_json(run, workplace):
    status, out, err = run("info", "./tiny", "--json")
    assert (status, err) == (0, "")
    facts = json.loads(out)
    assert facts["parameters"] == 7104
    assert facts["weight_bytes"] == {"float32": 28416, "bfloat16": 14368}
    assert facts["cache_bytes_per_image"] == {"float32": 4096, "bfloat16": 2048}
    assert facts["palette_fingerprint"] == ColorPalette.grey(10).fingerprint
    assert (facts["is_causal"], facts["head"], facts["image_width"], facts["colors"]) == (True, "pixels", 4, 10)


def test_info_needs_no_weights(run, workplace, tiny_folder):
    (workplace / "bare").mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (workplace / "bare" / name).write_text((tiny_folder / name).read_text())
    assert run("info", "./bare")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no model 'nowhere'"),
        (["./empty"], "empty contains no config.json"),
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
def test_quantities_are_formatted_with_three_digits(num, text):
    assert format_bytes(num) == text
    assert format_si(num, "FLOP") == text.replace("B", "FLOP")
