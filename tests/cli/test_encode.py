"""`imagegpt encode`: images into a folder of ids, what is told about it, and what is refused."""

import json
import os
import signal

import numpy as np
import pytest
from PIL import Image

from helpers import digit_ids
from imagegpt import ColorPalette, ImageGPTImageProcessor
from imagegpt.data.encoded import EncodedDataset
from imagegpt.data.palettes import load_palette
from imagegpt.jobs.encode_job import EncodeJob


@pytest.fixture
def pictures(workplace):
    """The folder "src" with ten images in two classes, and "pal.npy"; returns the images."""
    images = np.random.default_rng(0).integers(0, 256, (10, 6, 8, 3), dtype=np.uint8)
    for index, image in enumerate(images):
        path = workplace / "src" / ("ant" if index < 5 else "bee") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    ColorPalette.fit(images, 16).save(workplace / "pal.npy")
    return images


@pytest.mark.parametrize("mode", ["crop", "squash"])
def test_the_ids_are_the_processors(run, workplace, pictures, mode):
    status, out, err = run("encode", "src", "out", "--palette", "pal.npy", "--size", 4, "--resize", mode)
    assert status == 0
    lines = out.splitlines()
    assert [line.split() for line in lines[:2]] == [["images", "encoded", "broken", "classes"], ["10", "10", "0", "2"]]
    assert lines[2].startswith("10 images in ")
    assert lines[2].endswith(" images/s: out")
    assert err == "Next: imagegpt train pictures --set data.train=./out --out ./model\n"
    encoded = EncodedDataset("out")
    processor = ImageGPTImageProcessor(ColorPalette.load("pal.npy"), size=4, resize_mode=mode)
    assert np.array_equal(encoded.read(np.array(range(10))), processor(list(pictures))["input_ids"])
    assert encoded.classes == ["ant", "bee"]


def test_the_result_as_json(run, workplace, pictures):
    status, out, _ = run("encode", "src", "out", "--palette", "pal.npy", "--json")
    found = json.loads(out)
    assert status == 0
    assert (found["splits"][0]["num_images"], found["splits"][0]["folder"]) == (10, "out")
    assert found["seconds"] > 0


def test_parquet(run, workplace, pictures, names_in):
    assert run("encode", "src", "out", "--palette", "pal.npy", "--format", "parquet")[0] == 0
    assert len(EncodedDataset("out")) == 10
    assert "data-00000-of-00001.parquet" in names_in()


def test_the_tasks_of_a_job_array_share_the_work(run, workplace, pictures, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    for task, rest in (("0", "images/s: out"), ("1", "nothing was left to do: out")):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        status, out, _ = run("encode", "src", "out", "--palette", "pal.npy")
        assert (status, out.splitlines()[-1][-len(rest) :]) == (0, rest)


def test_the_same_command_goes_on(run, workplace, pictures):
    arguments = ["encode", "src", "out", "--palette", "pal.npy"]
    run(*arguments)
    status, out, err = run(*arguments)
    assert (status, out.splitlines()[-1]) == (0, "nothing was left to do: out")
    assert err.splitlines()[0] == "resuming: 10 of 10 images are done"


def test_all_splits_with_the_palette_of_a_bundled_model(run, workplace):
    status, out, _ = run("encode", "digits", "out", "--palette", "digits", "--size", 8)
    assert status == 0
    rows = [line.split() for line in out.splitlines()[:4]]
    assert rows == [
        ["split", "images", "encoded", "broken", "classes"],
        ["train", "1,297", "1,297", "0", "10"],
        ["validation", "140", "140", "0", "10"],
        ["test", "360", "360", "0", "10"],
    ]
    assert np.array_equal(EncodedDataset("out", "test").read(np.array(range(360))), digit_ids("test").numpy())


def test_one_split_with_the_palette_of_a_folder(run, workplace):
    status, out, _ = run("encode", "digits", "out", "--split", "val", "--palette", "./tiny", "--size", 8)
    assert (status, out.splitlines()[1].split()) == (0, ["validation", "140", "140", "0", "10"])
    assert EncodedDataset("out").palette == ColorPalette.grey(10)


def test_broken_images_are_told(run, workplace, pictures):
    for index in range(6):
        (workplace / "src" / "ant" / f"x{index}.png").write_bytes(b"x")
    arguments = ["encode", "src", "out", "--palette", "pal.npy"]
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith(
        "error: 6 of 16 images of src are broken and 5 % may be (ant/x0.png is unreadable; ant/x1.png"
    )
    assert err.count("\n") == 1
    for _ in range(2):  # the second time nothing is left to do
        status, out, err = run(*arguments, "--max-broken", 0.4)
        assert (status, out.splitlines()[1].split()) == (1, ["16", "10", "6", "2"])
        assert "skipped (unreadable): src/ant/x0.png is not an image that Pillow can read" in err
        assert "6 broken images skipped: see out/encoding.json\n" in err


@pytest.mark.parametrize("stop", ["Ctrl-C", "SIGTERM"])
def test_when_it_is_stopped_it_says_how_to_go_on(run, workplace, pictures, monkeypatch, stop):
    handler = signal.getsignal(signal.SIGTERM)

    def stopped(*_, **__):
        if stop == "Ctrl-C":
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(EncodeJob, "make", stopped)
        status, out, err = run("encode", "src", "out", "--palette", "pal.npy")
    assert (status, out) == (130 if stop == "Ctrl-C" else 143, "")
    assert err == "stopped: the same command resumes from what is in out\n"
    assert signal.getsignal(signal.SIGTERM) == handler
    assert run("encode", "src", "out", "--palette", "pal.npy")[0] == 0


PALETTE = ["--palette", "pal.npy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["src", "out"], "Missing option '--palette'"),
        (["src", "out", "--palette", "nothing"], "there is no palette 'nothing': give a .npy file or a folder"),
        (["src", "out", "--palette", "./nothing"], "there is no palette './nothing': give a .npy file or a folder"),
        (
            ["src", "out", "--palette", "src"],
            "src contains no palette: expected preprocessor_config.json or kmeans",
        ),
        (["src", "out", "--palette", "cat.png"], "cat.png is not a readable .npy palette"),
        (["src", "out", "--palette", "openai/imagegpt-small"], "'openai/imagegpt-small' is not on this machine"),
        (["src", "out", *PALETTE, "--size", "0"], "Invalid value for '--size'"),
        (["src", "out", *PALETTE, "--resize", "stretch"], "Invalid value for '--resize'"),
        (["src", "out", *PALETTE, "--workers", "0"], "Invalid value for '--workers'"),
        (["src", "out", *PALETTE, "--max-broken", "2"], "Invalid value for '--max-broken'"),
        (["src", "out", *PALETTE, "--split", "train"], "src has no splits and 'train' was asked for"),
        (["./none", "out", *PALETTE], "'./none' does not exist: check the path"),
        (["owner/name", "out", *PALETTE], "owner/name does not exist here, and a data set of that name cannot be"),
        (["src", "no/out", *PALETTE], "there is no folder no: create it first"),
        (["src", "cat.png", *PALETTE], "cat.png is a file: encoded images need a folder"),
        (["src", "src", *PALETTE], "src holds ant, which is no part of this encoding"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(run, workplace, pictures, names_in, arguments, message):
    before = names_in()
    status, out, err = run("encode", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert names_in() == before


def test_other_settings_are_refused(run, workplace, pictures):
    run("encode", "src", "out", *PALETTE)
    status, out, err = run("encode", "src", "out", *PALETTE, "--size", 16)
    assert (status, out) == (2, "")
    assert err.startswith("error: the images in out were encoded with another size ({'height': 32, 'width': 32}, not {")


def test_a_palette_by_its_path_or_name(workplace):
    ColorPalette.grey(5).save(workplace / "five.npy")
    assert load_palette("five.npy") == ColorPalette.grey(5)
    assert load_palette("./tiny/preprocessor_config.json") == ColorPalette.grey(10)
    assert load_palette("digits") == ColorPalette.grey(17)
