"""`imagegpt fill`: a bidirectional model samples hidden pixels."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from imagegpt import (
    ColorPalette,
    ImageGPTConfig,
    ImageGPTForCausalImageModeling,
    ImageGPTImageProcessor,
    ImageGPTPipeline,
)


@pytest.fixture
def place(workplace):
    """A bidirectional model "bert" of 4 x 4 pixels, and a mask with a hole in the middle."""
    torch.manual_seed(0)
    config = ImageGPTConfig(vocab_size=11, n_positions=16, n_embd=16, n_layer=2, n_head=2, is_causal=False)
    processor = ImageGPTImageProcessor(ColorPalette.grey(10), size=4)
    ImageGPTPipeline(ImageGPTForCausalImageModeling(config), processor).save_pretrained(workplace / "bert")
    visible = np.full((4, 4), 255, np.uint8)
    visible[1:3, 1:3] = 0
    Image.fromarray(visible).save(workplace / "mask.png")
    return workplace


def test_filling_keeps_visible_pixels_and_is_reproducible(run, place):
    words = ["fill", "cat.png", "--mask", "mask.png", "--model", "./bert", "--num", 3, "--singles", "one"]
    code, out, err = run(*words)
    assert code == 0, err
    assert out == "3 samples of 1 image: filled.png\nsingle samples: one\n"
    samples = [np.asarray(Image.open(path)) for path in sorted((place / "one").iterdir())]
    assert len(samples) == 3
    visible = np.asarray(Image.open("mask.png")) > 0
    quantized = np.asarray(ImageGPTPipeline.from_pretrained("./bert").quantize("cat.png")[0])
    assert all(np.array_equal(image[visible], quantized[visible]) for image in samples)
    assert not np.array_equal(samples[0], samples[1])
    with Image.open("filled.png") as picture:
        assert picture.info["model"] == "./bert"
        assert "passes=16" in picture.info["schedule"]
    before = (place / "filled.png").read_bytes()
    assert run(*words, "--force")[0] == 0
    assert (place / "filled.png").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "./tiny"], "this model is causal"),
        (["--model", "./bert", "--mask", "none.png"], "there is no image none.png"),
        (["--model", "./bert", "--mask", "white.png"], "the mask keeps all of 16 pixels: leave at least one to fill"),
        (["--model", "./bert", "--refill-fraction", "0"], "'--refill-fraction': 0 is not a number greater than 0"),
        (["--model", "./bert", "--passes", "0"], "--passes"),
        (["--model", "./bert", "--out", "x.jpg"], "choose a name that ends in .png"),
    ],
)
def test_invalid_input_is_refused(words, message, run, place):
    Image.new("L", (4, 4), 255).save("white.png")
    mask = [] if "--mask" in words else ["--mask", "mask.png"]
    code, _, err = run("fill", "cat.png", *mask, *words)
    assert code == 2
    assert message in " ".join(err.split())
    assert not (place / "filled.png").exists()


def test_fill_as_json(run, place):
    words = ["fill", "cat.png", "--mask", "mask.png", "--model", "./bert", "--num", 1, "--singles", "one", "--json"]
    status, out, _ = run(*words)
    assert status == 0
    counts = {"num_images": 1, "num_samples": 1, "num_broken": 0}
    assert json.loads(out) == {**counts, "path": "filled.png", "singles": ["one/cat_0.png"]}


@pytest.mark.parametrize("words", [["complete", "cat.png"], ["sample"]])
def test_other_commands_refuse_a_bidirectional_model(words, run, place):
    code, _, err = run(*words, "--model", "./bert")
    assert code == 2
    assert "this model is bidirectional (BERT): it fills hidden pixels" in " ".join(err.split())


def test_a_bidirectional_model_refuses_sampler_options(place):
    with pytest.raises(ValueError, match="precision is 'int8', and this model is bidirectional"):
        ImageGPTPipeline.from_pretrained("./bert", precision="int8")
