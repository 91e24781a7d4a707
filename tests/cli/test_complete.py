"""`imagegpt complete`: what it writes, what it refuses, and that failures leave nothing behind."""

import errno

import numpy as np
import pytest
from PIL import Image

from imagegpt import ImageGPTPipeline
from imagegpt.sampling import Sampler

MODEL = ("--model", "./tiny")


def picture(path):
    with Image.open(path) as image:
        image.load()
        return image


def test_completions_are_written_as_one_picture_and_singly(run, workplace, names_in):
    status, out, err = run("complete", "cat.png", *MODEL, "--num", 3, "--out", "out.png", "--singles", "each")
    assert (status, err) == (0, "")
    assert out == "3 completions of 1 image: out.png\none by one: each\n"
    assert names_in() == ["cat_0.png", "cat_1.png", "cat_2.png", "each", "out.png"]
    (expected,) = ImageGPTPipeline.from_pretrained(workplace / "tiny").complete("cat.png", num=3)
    for index, image in enumerate(expected):
        assert np.array_equal(np.asarray(picture(f"each/cat_{index}.png")), np.asarray(image))


def test_pictures_tell_how_they_were_made(run, workplace):
    run("complete", "cat.png", *MODEL, "--num", 1, "--seed", 7, "--top-k", 5, "--keep", 0.25, "--out", "out.png")
    text = picture("out.png").text
    assert text == {
        "Software": "imagegpt 0.1.0",
        "Comment": "created with iGPT",
        "model": "./tiny",
        "seed": "7",
        "rules": "temperature 1, top-k 5",
        "keep": "4 pixels",
    }


def test_options_reach_the_pipeline(run, workplace, monkeypatch):
    seen = {}

    def complete(self, images, **options):
        seen.update(options, images=images)
        return [self.reduce(images)] * len(images)

    monkeypatch.setattr(ImageGPTPipeline, "complete", complete)
    options = ["--keep", 0.25, "--num", 2, "--seed", 3, "--temperature", 0.5, "--top-k", 4, "--top-p", 0.9]
    status, *_ = run("complete", "cat.png", *MODEL, *options, "--batch-size", 6, "--dtype", "float64")
    assert status == 0
    assert callable(seen.pop("progress"))
    assert [str(path) for path in seen.pop("images")] == ["cat.png"]
    assert seen == {
        "keep": 0.25, "num": 2, "seed": 3, "temperature": 0.5, "top_k": 4, "top_p": 0.9, "batch_size": 6
    }  # fmt: skip


def test_images_of_one_name_do_not_overwrite_each_other(run, workplace, names_in):
    (workplace / "more").mkdir()
    Image.radial_gradient("L").save("more/cat.png")
    status, *_ = run("complete", "cat.png", "more/cat.png", *MODEL, "--num", 1, "--singles", "each")
    assert status == 0
    assert names_in() == ["0_cat_0.png", "1_cat_0.png", "completions.png", "each", "more"]


def test_overwriting_needs_force(run, workplace):
    before = Image.new("L", (1, 1))
    before.save("out.png")
    status, _, err = run("complete", "cat.png", *MODEL, "--out", "out.png")
    assert (status, err) == (2, "error: out.png exists already: give --force to overwrite it\n")
    assert picture("out.png").size == (1, 1)
    status, *_ = run("complete", "cat.png", *MODEL, "--out", "out.png", "--force")
    assert status == 0
    assert picture("out.png").size != (1, 1)


BAD_INPUTS = {
    "no such image": (["dog.png"], "there is no image dog.png: check the path"),
    "a folder for an image": (["tiny"], "there is no image tiny: check the path"),
    "not an image": (["notes.txt"], "notes.txt is not an image that Pillow can read"),
    "a truncated image": (["cut.png"], "cut.png cannot be decoded, it may be truncated"),
    "the second image of two": (["cat.png", "notes.txt"], "image 1 of 2: notes.txt is not an image"),
    "no such model": (["cat.png", "--model", "digitz"], "there is no model 'digitz': "),
    "no such folder": (["cat.png", "--model", "./nowhere"], "there is no folder ./nowhere: check the path"),
    "a folder without a model": (["cat.png", "--model", "./notes"], "notes holds no config.json: give a folder"),
    "a revision of a folder": (
        ["cat.png", "--revision", "v1"],
        "revision 'v1' was given for './tiny', which is not on",
    ),
    "keep too much": (["cat.png", "--keep", "1"], "keep is 1.0: the share of the pixels to keep must be at least 0"),
    "keep almost all": (["cat.png", "--keep", "0.99"], "keep is 0.99, which is all of 16 pixels"),
    "keep more than all": (["cat.png", "--keep", "1.5"], "Invalid value for '--keep'"),
    "keep less than nothing": (["cat.png", "--keep", "-0.5"], "Invalid value for '--keep'"),
    "no completions": (["cat.png", "--num", "0"], "Invalid value for '--num'"),
    "negative seed": (["cat.png", "--seed", "-1"], "Invalid value for '--seed'"),
    "huge seed": (["cat.png", "--seed", str(2**64)], "seed is 18446744073709551616: it must be a whole number"),
    "negative temperature": (["cat.png", "--temperature", "-1"], "Invalid value for '--temperature'"),
    "top-k of nothing": (["cat.png", "--top-k", "0"], "Invalid value for '--top-k'"),
    "top-p of nothing": (["cat.png", "--top-p", "0"], "top_p is 0.0: it must be greater than 0 and at most 1"),
    "top-p beyond 1": (["cat.png", "--top-p", "1.5"], "top_p is 1.5: it must be greater than 0 and at most 1"),
    "no such device": (["cat.png", "--device", "tpu"], "there is no device 'tpu' here: choose from cpu"),
    "no such dtype": (["cat.png", "--dtype", "int4"], "dtype is 'int4': choose one of float32, bfloat16, float16"),
    "batches of nothing": (["cat.png", "--batch-size", "0"], "Invalid value for '--batch-size'"),
    "out is no PNG": (["cat.png", "--out", "x.jpg"], "--out is x.jpg: images are written as PNG, choose a name"),
    "out has no suffix": (["cat.png", "--out", "x"], "--out is x: images are written as PNG"),
    "out is a folder": (["cat.png", "--out", "folder.png"], "folder.png is a folder: give the name of a file"),
    "out is nowhere": (["cat.png", "--out", "no/where.png"], "there is no folder no: make it first, or choose another"),
    "out cannot be written": (["cat.png", "--out", "/proc/x.png"], "/proc cannot be written to (No such file"),
    "singles is a file": (["cat.png", "--singles", "notes.txt"], "notes.txt is a file: --singles wants a folder"),
    "singles is nowhere": (["cat.png", "--singles", "no/where"], "there is no folder no: make it first, or choose"),
    "singles exist": (["cat.png", "--singles", "notes"], "notes/cat_0.png exists already: give --force to overwrite"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_bad_input_is_one_sentence_and_leaves_nothing(run, workplace, names_in, arguments, message):
    (workplace / "notes.txt").write_text("no image")
    (workplace / "cut.png").write_bytes((workplace / "cat.png").read_bytes()[:100])
    (workplace / "folder.png").mkdir()
    (workplace / "notes").mkdir()
    (workplace / "notes/cat_0.png").touch()
    before = names_in()
    status, out, err = run("complete", *MODEL, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert names_in() == before


def test_outputs_are_checked_before_the_model_is_loaded(run, workplace, monkeypatch):
    monkeypatch.setattr(ImageGPTPipeline, "from_pretrained", lambda *_, **__: pytest.fail("the model was loaded"))
    for wrong in (["--out", "x.jpg"], ["--out", "cat.png"], ["--singles", "cat.png"]):
        assert run("complete", "cat.png", *MODEL, *wrong)[0] == 2


@pytest.mark.parametrize("failing_save", [0, 1, 2])
def test_a_full_disk_leaves_nothing(run, workplace, names_in, monkeypatch, failing_save):
    calls = []
    save = Image.Image.save

    def fail(self, path, **options):
        calls.append(path)
        save(self, path, **options)
        if len(calls) > failing_save:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    status, out, err = run("complete", "cat.png", *MODEL, "--num", 2, "--out", "out.png", "--singles", "each")
    assert (status, out) == (2, "")
    assert "cannot be written (No space left on device): free some space or choose another place" in err
    assert len(calls) == failing_save + 1
    assert names_in() == []


def test_interruption_leaves_nothing(run, workplace, names_in, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Sampler, "generate", interrupt)
    assert run("complete", "cat.png", *MODEL, "--singles", "each") == (130, "", "error: stopped\n")
    assert names_in() == []
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(Image.Image, "save", interrupt)
    assert run("complete", "cat.png", *MODEL, "--singles", "each")[0] == 130
    assert names_in() == []
