"""`imagegpt sample`: the images a seed stands for, and where they go."""

import numpy as np
import pytest
from PIL import Image

from imagegpt import ImageGPTPipeline

MODEL = ("--model", "./tiny")


def picture(path):
    with Image.open(path) as image:
        image.load()
        return image


def test_samples_are_the_pipelines(run, workplace, names_in):
    options = ["--num", 3, "--seed", 4, "--temperature", 0.8, "--top-p", 0.9, "--batch-size", 2]
    status, out, err = run("sample", *MODEL, *options, "--singles", "each")
    assert (status, err) == (0, "")
    assert out == "3 samples: samples.png\none by one: each\n"
    assert names_in() == ["each", "sample_0.png", "sample_1.png", "sample_2.png", "samples.png"]
    expected = ImageGPTPipeline.from_pretrained(workplace / "tiny").sample(3, seed=4, temperature=0.8, top_p=0.9)
    for index, image in enumerate(expected):
        assert np.array_equal(np.asarray(picture(f"each/sample_{index}.png")), np.asarray(image))
    text = picture("each/sample_2.png").text
    assert (text["seed"], text["rules"]) == ("4", "temperature 0.8, top-p 0.9")


def test_greedy_samples_are_all_alike(run, workplace):
    assert run("sample", *MODEL, "--num", 2, "--temperature", 0, "--singles", "each")[0] == 0
    first, second = (picture(f"each/sample_{index}.png") for index in range(2))
    assert np.array_equal(np.asarray(first), np.asarray(second))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num", "0"], "Invalid value for '--num'"),
        (["--out", "x.gif"], "--out is x.gif: images are written as PNG"),
        (["--out", "cat.png"], "cat.png exists already: give --force to overwrite it"),
        (["--model", "openai/imagegpt-small"], "'openai/imagegpt-small' is not on this machine and huggingface.co"),
        (["--temperature", "nan"], "Invalid value for '--temperature'"),
        (["--temperature", "inf"], "temperature is inf: it must be a number of at least 0"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(run, workplace, names_in, arguments, message):
    status, out, err = run("sample", *MODEL, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert names_in() == []
