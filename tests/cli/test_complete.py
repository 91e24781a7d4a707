"""`imagegpt complete`: what it writes, what it refuses, and that failures leave nothing behind."""

import errno
import json

import numpy as np
import pytest
from PIL import Image

from imagegpt import ImageGPTPipeline
from imagegpt.sampling import Sampler
from imagegpt.sampling.packed_linear import stored_bytes

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
    options = ["--num", 1, "--seed", 7, "--top-k", 5, "--min-p", 0.1, "--keep", 0.25]
    run("complete", "cat.png", *MODEL, *options, "--out", "out.png", "--gif", "out.gif", "--singles", "each")
    facts = {"model": "./tiny", "seed": "7", "rules": "temperature 1, top-k 5, min-p 0.1", "keep": "4 pixels"}
    expected = {"Software": "imagegpt 0.1.0", "Comment": "created with iGPT", **facts}
    assert picture("out.png").text == picture("each/cat_0.png").text == expected
    comment = "; ".join(f"{key}: {value}" for key, value in facts.items())
    assert picture("out.gif").info["comment"].decode() == f"created with iGPT; {comment}"


def test_options_reach_the_pipeline(run, workplace, monkeypatch):
    seen = {}

    def complete_ids(self, prompts, **options):
        seen.update(options, kept=prompts, sampler=self.sampler)
        return [self.quantize("cat.png")] * len(prompts)

    monkeypatch.setattr(ImageGPTPipeline, "complete_ids", complete_ids)
    options = ["--keep", 0.25, "--num", 2, "--seed", 3, "--temperature", 0.5, "--top-k", 4, "--top-p", 0.9]
    options += [
        "--min-p",
        0.02,
        "--batch-size",
        6,
        "--precision",
        "bfloat16",
        "--decoder",
        "parallel",
        "--max-memory",
        1e-4,
    ]
    status, *_ = run("complete", "cat.png", *MODEL, *options)
    assert status == 0
    assert callable(seen.pop("progress"))
    plan = seen.pop("sampler").plan
    assert (plan.precision, plan.decoder) == ("bfloat16", "parallel")
    weights = stored_bytes(plan.model) + 4 * plan.model.config.num_colors**2  # and the table of drafts
    assert plan.batch_size == (10**5 - weights) // plan.bytes_per_image > 1
    pipe = ImageGPTPipeline.from_pretrained(workplace / "tiny")
    assert seen.pop("kept").tolist() == pipe.encode("cat.png")[:, :4].tolist()
    assert seen == {
        "num": 2, "seed": 3, "temperature": 0.5, "top_k": 4, "top_p": 0.9, "min_p": 0.02, "batch_size": 6
    }  # fmt: skip


def test_each_image_is_read_once(run, workplace, monkeypatch):
    Image.radial_gradient("L").save("dog.png")
    read = []
    open_image = Image.open
    monkeypatch.setattr(Image, "open", lambda path, *a, **kw: read.append(str(path)) or open_image(path, *a, **kw))
    assert run("complete", "cat.png", "dog.png", *MODEL, "--num", 2, "--gif", "out.gif")[0] == 0
    assert read == ["cat.png", "dog.png"]


@pytest.mark.parametrize(
    ("options", "num_kept"),
    [
        ([], 8),
        (["--keep", 0.25], 4),
        (["--keep", 0], 0),
        (["--rows", 3], 12),
        (["--rows", 0], 0),
        (["--mask", "m.png"], 5),
    ],
)
def test_what_is_kept_can_be_said_in_three_ways(run, workplace, options, num_kept):
    Image.fromarray((np.arange(16) < 5).reshape(4, 4).repeat(3, axis=0).repeat(3, axis=1)).save("m.png")
    assert run("complete", "cat.png", *MODEL, *options, "--singles", "each")[0] == 0
    assert picture("completions.png").text["keep"] == f"{num_kept} pixels"
    pipe = ImageGPTPipeline.from_pretrained(workplace / "tiny")
    (expected,) = pipe.complete_ids(pipe.encode("cat.png")[:, :num_kept])
    for index, image in enumerate(expected):
        assert np.array_equal(np.asarray(picture(f"each/cat_{index}.png")), np.asarray(image))


def test_an_animation_ends_in_the_picture(run, workplace, names_in):
    arguments = ["cat.png", *MODEL, "--num", 2, "--rows", 2]
    status, out, err = run("complete", *arguments, "--out", "out.png", "--gif", "out.gif")
    assert (status, err) == (0, "")
    assert out == "2 completions of 1 image: out.png\nas they appear: out.gif\n"
    assert names_in() == ["out.gif", "out.png"]
    with Image.open("out.gif") as gif:
        assert gif.n_frames == 9  # 8 pixels are to come
        assert gif.info["loop"] == 0
        frames, durations = [], []
        for index in range(gif.n_frames):
            gif.seek(index)
            frames.append(np.asarray(gif.convert("RGB")).astype(int))
            durations.append(gif.info["duration"])
    assert durations == [80] * 8 + [2000]
    final = np.asarray(picture("out.png")).astype(int)
    assert frames[0].shape == final.shape
    assert np.abs(frames[-1] - final).max() <= 4  # the captions have many greys
    in_blue = [(frame[..., 2] - frame[..., 0] > 15).sum() for frame in frames]
    pixel = 24 * 24
    assert in_blue == [pixel * (8 + 2 * (8 - index)) for index in range(9)]


def test_images_of_one_name_do_not_overwrite_each_other(run, workplace, names_in):
    (workplace / "more").mkdir()
    Image.radial_gradient("L").save("more/cat.png")
    status, *_ = run("complete", "cat.png", "more/cat.png", *MODEL, "--num", 1, "--singles", "each")
    assert status == 0
    assert names_in() == ["0_cat_0.png", "1_cat_0.png", "completions.png", "each", "more"]


def test_an_animation_is_overwritten_with_force_only(run, workplace):
    (workplace / "out.gif").write_text("precious")
    status, _, err = run("complete", "cat.png", *MODEL, "--gif", "out.gif")
    assert (status, err) == (2, "error: out.gif exists already: give --force to overwrite it\n")
    assert (workplace / "out.gif").read_text() == "precious"
    assert run("complete", "cat.png", *MODEL, "--gif", "out.gif", "--force")[0] == 0
    assert picture("out.gif").format == "GIF"


def test_an_animation_larger_than_a_gif_can_be_is_refused_before_the_work(run, workplace, names_in, monkeypatch):
    monkeypatch.setattr(Sampler, "generate", lambda *_, **__: pytest.fail("images were drawn"))
    images = ["cat.png"] * 520  # 126 pixels each, one below the other
    status, out, err = run("complete", *images, *MODEL, "--num", 1, "--gif", "out.gif")
    assert (status, out) == (2, "")
    assert err.startswith("error: the animation would be 362 x ")
    assert "a GIF has at most 65535 a side: leave out --gif, or ask for fewer images" in err
    assert names_in() == []


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
    "the second image of two": (
        ["cat.png", "notes.txt"],
        "1 of 2 images are broken and 5 % may be (notes.txt is unreadable)",
    ),
    "no such model": (["cat.png", "--model", "digitz"], "there is no model 'digitz': "),
    "no such folder": (["cat.png", "--model", "./nowhere"], "there is no folder ./nowhere: check the path"),
    "a folder without a model": (["cat.png", "--model", "./notes"], "notes contains no config.json: give a folder"),
    "a revision of a folder": (
        ["cat.png", "--revision", "v1"],
        "revision 'v1' was given for './tiny', which is not on",
    ),
    "keep too much": (
        ["cat.png", "--keep", "1"],
        "Invalid value for '--keep': 1 is not a number of at least 0 and less",
    ),
    "keep almost all": (["cat.png", "--keep", "0.99"], "keep is 0.99, which is all of 16 pixels"),
    "keep more than all": (["cat.png", "--keep", "1.5"], "Invalid value for '--keep'"),
    "keep less than nothing": (["cat.png", "--keep", "-0.5"], "Invalid value for '--keep'"),
    "keep and rows": (
        ["cat.png", "--keep", "0.5", "--rows", "2"],
        "--keep 0.5 and --rows 2 each choose what is kept: give",
    ),
    "rows and mask": (
        ["cat.png", "--rows", "0", "--mask", "hole.png"],
        "--rows 0 and --mask hole.png each choose what is",
    ),
    "all rows": (["cat.png", "--rows", "4"], "rows is 4: an image has 4, keep an integer from 0 to 3"),
    "negative rows": (["cat.png", "--rows", "-1"], "Invalid value for '--rows'"),
    "no such mask": (["cat.png", "--mask", "nomask.png"], "there is no image nomask.png: check the path"),
    "not a mask": (["cat.png", "--mask", "notes.txt"], "the mask cannot be used: notes.txt is not an image that"),
    "a mask with a hole": (
        ["cat.png", "--mask", "hole.png"],
        "the mask keeps the pixel at row 1, column 2 (counted from",
    ),
    "a mask that keeps all": (
        ["cat.png", "--mask", "white.png"],
        "the mask keeps all of 16 pixels: leave at least one",
    ),
    "min-p beyond 1": (["cat.png", "--min-p", "1.5"], "Invalid value for '--min-p': 1.5 is not a number from 0 to 1"),
    "gif is no GIF": (
        ["cat.png", "--gif", "x.png"],
        "--gif is x.png: animations are written as GIF, choose a name that",
    ),
    "gif is a folder": (["cat.png", "--gif", "folder.gif"], "folder.gif is a folder: give the name of a file"),
    "gif is nowhere": (["cat.png", "--gif", "no/x.gif"], "there is no folder no: create it first, or choose"),
    "gif cannot be written": (["cat.png", "--gif", "/proc/x.gif"], "/proc cannot be written to (No such file"),
    "no completions": (["cat.png", "--num", "0"], "Invalid value for '--num'"),
    "negative seed": (["cat.png", "--seed", "-1"], "Invalid value for '--seed'"),
    "huge seed": (
        ["cat.png", "--seed", str(2**64)],
        "Invalid value for '--seed': 18446744073709551616 is not an integer from 0 to 2^64 - 1",
    ),
    "negative temperature": (["cat.png", "--temperature", "-1"], "Invalid value for '--temperature'"),
    "top-k of nothing": (["cat.png", "--top-k", "0"], "Invalid value for '--top-k'"),
    "top-p of nothing": (
        ["cat.png", "--top-p", "0"],
        "Invalid value for '--top-p': 0 is not a number greater than 0 and at most 1",
    ),
    "top-p beyond 1": (
        ["cat.png", "--top-p", "1.5"],
        "Invalid value for '--top-p': 1.5 is not a number greater than 0 and at most 1",
    ),
    "no such device": (["cat.png", "--device", "tpu"], "there is no device 'tpu': give cpu, cuda or cuda:1"),
    "no such precision": (
        ["cat.png", "--precision", "int4"],
        "'int4' is not one of 'auto', 'float32', 'bfloat16', 'int8'",
    ),
    "no such decoder": (["cat.png", "--decoder", "fast"], "'fast' is not one of 'sequential', 'parallel'"),
    "too little memory": (["cat.png", "--max-memory", "0.000001"], "max_memory is 1,000 bytes, but the weights take"),
    "batches of nothing": (["cat.png", "--batch-size", "0"], "Invalid value for '--batch-size'"),
    "out is no PNG": (["cat.png", "--out", "x.jpg"], "--out is x.jpg: images are written as PNG, choose a name"),
    "an animation of a folder": (["cat.png", "--out", "x", "--gif", "x.gif"], "--gif x.gif belongs to a picture"),
    "a format of a picture": (["cat.png", "--format", "npz"], "--format npz is for many images in a folder"),
    "out is nowhere": (
        ["cat.png", "--out", "no/where.png"],
        "there is no folder no: create it first, or choose",
    ),
    "out cannot be written": (["cat.png", "--out", "/proc/x.png"], "/proc cannot be written to (No such file"),
    "singles is a file": (["cat.png", "--singles", "notes.txt"], "notes.txt is a file: give --singles a folder"),
    "singles is nowhere": (["cat.png", "--singles", "no/where"], "there is no folder no: create it first, or choose"),
    "out is a single": (
        ["cat.png", "--singles", ".", "--out", "cat_0.png"],
        "--out is cat_0.png, which is also the name of a single completion: choose another name",
    ),
    "singles exist": (["cat.png", "--singles", "notes"], "notes/cat_0.png exists already: give --force to overwrite"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_bad_input_is_one_sentence_and_leaves_nothing(run, workplace, names_in, arguments, message):
    (workplace / "notes.txt").write_text("no image")
    (workplace / "cut.png").write_bytes((workplace / "cat.png").read_bytes()[:100])
    (workplace / "folder.png").mkdir()
    (workplace / "folder.gif").mkdir()
    Image.fromarray(np.isin(np.arange(16), [0, 1, 6]).reshape(4, 4)).save("hole.png")
    Image.new("L", (8, 8), 255).save("white.png")
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
    wrongs = [["--out", "x.jpg"], ["--out", "cat.png"], ["--singles", "cat.png"], ["--gif", "x.png"]]
    for wrong in [*wrongs, ["--keep", 0.5, "--rows", 2], ["--mask", "nowhere.png"]]:
        assert run("complete", "cat.png", *MODEL, *wrong)[0] == 2


@pytest.mark.parametrize("failing_save", [0, 1, 2, 3])
def test_a_full_disk_leaves_nothing(run, workplace, names_in, monkeypatch, failing_save):
    calls = []
    save = Image.Image.save

    def fail(self, path, **options):
        calls.append(path)
        save(self, path, **options)
        if len(calls) > failing_save:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    outputs = ["--out", "out.png", "--singles", "each", "--gif", "out.gif"]
    status, out, err = run("complete", "cat.png", *MODEL, "--num", 2, *outputs)
    assert (status, out) == (2, "")
    assert "cannot be written (No space left on device): free some space, or choose another path" in err
    assert len(calls) == failing_save + 1
    assert names_in() == []


def test_a_full_disk_leaves_what_was_there(run, workplace, names_in, monkeypatch):
    for name in ("out.png", "out.gif"):
        (workplace / name).write_text("precious")
    save = Image.Image.save

    def fail(self, path, **options):
        save(self, path, **options)
        if options["format"] == "GIF":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    assert run("complete", "cat.png", *MODEL, "--out", "out.png", "--gif", "out.gif", "--force")[0] == 2
    assert names_in() == ["out.gif", "out.png"]
    assert {(workplace / name).read_text() for name in names_in()} == {"precious"}


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


def test_many_images_go_into_a_folder_one_file_a_completion(run, workplace, names_in):
    (workplace / "photos").mkdir()
    for index in range(3):
        Image.linear_gradient("L").rotate(90 * index).save(f"photos/{index}.png")
    options = [*MODEL, "--num", 2, "--seed", 3, "--rows", 1, "--top-k", 4]
    status, out, err = run("complete", "photos", *options, "--out", "many")
    assert (status, out, err) == (0, "6 images: many\n", "")
    pipe = ImageGPTPipeline.from_pretrained(workplace / "tiny")
    expected = pipe.complete([f"photos/{index}.png" for index in range(3)], num=2, seed=3, rows=1, top_k=4)
    for index in range(6):
        found = picture(f"many/0000/{index:08d}.png")
        assert np.array_equal(np.asarray(found), np.asarray(expected[index // 2][index % 2]))
        assert (found.text["image"], found.text["completion"]) == (f"{index // 2}.png", str(index % 2))
    before = {path: path.stat().st_mtime_ns for path in (workplace / "many").rglob("*.png")}
    (workplace / "many/0000/00000004.png").unlink()
    (workplace / "many/.imagegpt/00000.done").unlink()
    status, out, err = run("complete", "photos", *options, "--out", "many", "--json")
    assert (status, json.loads(out)["num_new"], err) == (0, 1, "resuming: 5 of 6 images are done\n")
    after = {path: path.stat().st_mtime_ns for path in (workplace / "many").rglob("*.png")}
    assert {path.name for path in after if before[path] != after[path]} == {"00000004.png"}


def test_files_named_one_by_one_go_into_a_folder_without_the_broken_ones(run, workplace):
    Image.radial_gradient("L").save("dog.png")
    (workplace / "notes.txt").write_text("no image")
    command = ["complete", "cat.png", "notes.txt", "dog.png", *MODEL, "--num", 1, "--format", "npz", "--out", "many"]
    status, _, err = run(*command)
    assert status == 2
    assert "1 of 3 images of 3 files are broken and 5 % may be (notes.txt is unreadable)" in err
    status, out, err = run(*command, "--max-broken", 0.5)
    assert (status, out) == (1, "2 images: many\n")
    assert "skipped (unreadable): notes.txt is not an image" in err
    assert (workplace / "broken-images.txt").read_text().startswith("notes.txt\tunreadable")
    with np.load("many/00000000.npz") as shard:
        ids = shard["ids"]
    pipe = ImageGPTPipeline.from_pretrained(workplace / "tiny")
    for row, name in enumerate(["cat.png", "dog.png"]):
        assert np.array_equal(
            pipe.processor.decode(ids[row : row + 1].astype(int))[0], pipe.complete(name, num=1)[0][0]
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--num", 3], "another number of completions (2, not 3)"),
        (["--rows", 1], "another number of kept pixels (8, not 4)"),
    ],
)
def test_other_completions_are_refused_in_the_same_folder(run, workplace, change, message):
    run("complete", "cat.png", *MODEL, "--num", 2, "--out", "many")
    status, _, err = run("complete", "cat.png", *MODEL, "--num", 2, *change, "--out", "many")
    assert status == 2
    assert message in err
    assert run("sample", *MODEL, "--num", 2, "--out", "many")[0] == 2
