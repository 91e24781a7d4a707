"""Unusual names of files, folders, classes and models, through complete commands."""

import numpy as np
import pytest
from PIL import Image

NAMES = ["[x] $y^$ :tea: `z`", "ol\udce9\n\x1b[2J"]
TINY = [
    f"--set={change}"
    for change in (
        "training.num_steps=2", "training.warmup_steps=0", "training.batch_size=2", "training.precision=float32",
        "monitoring.validate_every=2", "monitoring.checkpoint_every=2", "monitoring.samples=0",
        "monitoring.validation_images=4",
    )
]  # fmt: skip


@pytest.fixture(params=NAMES, ids=ascii)
def name(request, workplace):
    """The name of a folder with two classes, a model and an image."""
    name = request.param
    try:
        (workplace / f"{name}.png").write_bytes((workplace / "cat.png").read_bytes())
    except OSError:
        pytest.skip("the file system has no such names")
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    for index, image in enumerate(images):
        folder = workplace / name / (f"{name} 1" if index % 2 else f"{name} 2")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index} {name}.png")
    return name


def clean(text):
    """Whether text contains no terminal control characters."""
    return all(line.isprintable() for line in text.splitlines())


def test_sample_and_complete(run, workplace, name):
    for words in (
        ["sample", "--model", "./tiny", "--num", 1, "--out", f"s{name}.png", "--gif", f"s{name}.gif"],
        ["sample", "--model", "./tiny", "--num", 2, "--out", f"many{name}"],
        ["complete", f"{name}.png", "--model", "./tiny", "--num", 1, "--out", f"c{name}.png"],
    ):
        status, out, err = run(*words)
        assert status == 0, err
        assert clean(out)
        assert clean(err)
    assert (workplace / f"c{name}.png").is_file()
    assert (workplace / f"s{name}.gif").is_file()


@pytest.mark.parametrize("command", ["palette", "encode", "evaluate", "finetune"])
def test_commands_that_read_folders(run, workplace, name, command):
    words = {
        "palette": ["palette", "fit", name, "--out", f"p{name}", "--colors", 6, "--size", 4],
        "encode": ["encode", name, f"e{name}", "--palette", "tiny", "--size", 4],
        "evaluate": ["evaluate", "./tiny", name, "--all"],
        "finetune": ["finetune", "./tiny", name, "--out", "model", *TINY],
    }
    status, out, err = run(*words[command])
    assert status == 0, err
    assert clean(out)
    assert clean(err)
    if command == "finetune":
        assert (workplace / "model" / "confusion.png").is_file()
        card = (workplace / "model" / "README.md").read_text(encoding="utf-8")
        assert "Accuracy on " in card
        assert clean(card)
        status, out, err = run("info", "model")
        assert (status, err) == (0, "")
        assert clean(out)


def test_commands_that_read_models(run, workplace, name):
    """Or one sentence, where safetensors would not open them."""
    (workplace / f"m{name}").symlink_to("tiny")
    for words in (
        ["info", f"./m{name}"],
        ["inspect", f"./m{name}"],
        ["sample", "--model", f"./m{name}", "--num", 1, "--out", "s.png"],
        ["convert", "transformers", "tiny", f"converted{name}"],
        ["finetune", "./tiny", name, "--out", f"f{name}", *TINY],
    ):
        status, out, err = run(*words)
        if name.isascii():
            assert status == 0, err
        else:
            assert (status, out) == (2, "")
            assert "is not valid UTF-8, which model files require: choose another name" in err
            assert err.count("\n") == 1
        assert clean(out)
        assert clean(err)


def test_error_messages_escape_names(run, workplace, name):
    for words in (
        ["info", f"./no{name}"],
        ["complete", f"no{name}.png"],
        ["encode", f"./no{name}", "x", "--palette=tiny"],
    ):
        status, out, err = run(*words)
        assert (status, out) == (2, "")
        assert err.count("\n") == 1
        assert clean(err)
