"""A broken image never aborts a job: every command skips and lists it, does its work, and exits with code 1."""

import shutil

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
from imagegpt.data.identity import DataRecord

RECIPE = """
model: {n_layer: 1, n_embd: 16, n_head: 2}
data: {train: photos, palette: pal.npy, side: 4, split: {validation: 0.2}}
training: {num_steps: 3, batch_size: 8, warmup_steps: 1}
monitoring: {validate_every: 1, checkpoint_every: 1, samples: 0}
"""
LIST = "cat/x.png\tunreadable\tphotos/cat/x.png is not an image that Pillow can read: convert it, for example to PNG\n"
SKIPPED = "skipped (unreadable): photos/cat/x.png is not an image that Pillow can read"


@pytest.fixture
def photos(workplace):
    """Forty pictures of two classes and a broken one in "photos", a palette, and a recipe."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        path = workplace / "photos" / ("cat" if index < 20 else "dog") / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (workplace / "photos/cat/x.png").write_bytes(b"no image")
    ColorPalette.grey(10).save("pal.npy")
    (workplace / "r.yaml").write_text(RECIPE)
    return workplace / "photos"


def named(photos):
    """The paths of the images, the broken one in the middle."""
    return [path.relative_to(photos.parent) for path in sorted(photos.rglob("*.png"))]


def test_complete_skips_and_lists_broken_images(run, workplace, photos):
    """The completions of the others are what they would be without it."""
    paths = named(photos)
    command = ["complete", *paths, "--model", "./tiny", "--num", 2, "--singles", "each"]
    status, out, err = run(*command)
    assert (status, out) == (1, "2 completions of 40 images: completions.png\none by one: each\n")
    assert err.startswith(SKIPPED)
    assert err.endswith("\n1 broken image skipped: see broken-images.txt\n")
    assert (workplace / "broken-images.txt").read_text() == f"photos/{LIST}"
    pipe = ImageGPTPipeline.from_pretrained(workplace / "tiny")
    assert len(list((workplace / "each").iterdir())) == 80
    for path in (paths[0], paths[-1]):
        for index, expected in enumerate(pipe.complete(path, num=2)[0]):
            assert np.array_equal(np.asarray(Image.open(f"each/{path.stem}_{index}.png")), np.asarray(expected))
    assert run(*command, "--force", "--max-broken", 0) == (
        *(2, ""),
        "error: 1 of 41 images are broken and 0 % may be (photos/cat/x.png is unreadable): "
        "repair or remove them, or raise max_broken\n",
    )


def test_fill_skips_and_lists_broken_images(run, workplace, photos):
    torch.manual_seed(0)
    config = ImageGPTConfig(vocab_size=11, n_positions=16, n_embd=16, n_layer=1, n_head=2, is_causal=False)
    pipe = ImageGPTPipeline(
        ImageGPTForCausalImageModeling(config), ImageGPTImageProcessor(ColorPalette.grey(10), size=4)
    )
    pipe.save_pretrained("bert")
    Image.fromarray(np.eye(4, dtype=np.uint8) * 255).save("mask.png")
    words = ["--mask", "mask.png", "--model", "./bert", "--num", 1, "--singles", "each", "--out", "more/out.png"]
    (workplace / "more").mkdir()
    status, out, err = run("fill", *named(photos), *words)
    assert (status, out) == (1, "1 sample of 40 images: more/out.png\nsingle samples: each\n")
    assert "1 broken image skipped: see more/broken-images.txt" in err
    last = named(photos)[-1]
    (expected,) = pipe.fill(last, "mask.png", num=1)[0]
    assert np.array_equal(np.asarray(Image.open(f"each/{last.stem}_0.png")), np.asarray(expected))


def test_evaluate_skips_and_lists_broken_images(run, workplace, photos):
    """A file of the user's that has the list's name stays; the same list is not written twice."""
    (workplace / "broken-images.txt").write_text("my own")
    for _ in range(2):
        status, out, err = run("evaluate", "./tiny", "photos", "--all")
        assert status == 1
        assert "40 images of photos" in out
        assert SKIPPED in err
        assert "1 broken image skipped: see broken-images-2.txt\n" in err
    assert (workplace / "broken-images.txt").read_text() == "my own"
    assert (workplace / "broken-images-2.txt").read_text() == LIST
    assert not (workplace / "broken-images-3.txt").exists()
    status, out, err = run("evaluate", "./tiny", "photos", "--max-broken", 0)
    assert (status, out) == (2, "")
    assert err.startswith("error: 1 of 41 images of photos are broken and 0 % may be (cat/x.png is unreadable): repair")


def test_a_list_that_cannot_be_written_is_only_reported(run, workplace, photos, monkeypatch):
    def fail(*_):
        raise OSError("the list cannot be written")

    monkeypatch.setattr("imagegpt.data.broken_images.write_list", fail)
    status, out, err = run("evaluate", "./tiny", "photos", "--all")
    assert (status, "40 images of photos" in out) == (1, True)
    assert err.endswith("1 broken image skipped: see above, the list cannot be written\n")


def test_train_skips_broken_images_and_resumes(run, workplace, photos):
    status, _, err = run("train", "r.yaml", "--out", "m", "--set", "training.num_steps=2")
    assert status == 1
    assert SKIPPED in err
    assert "1 broken image skipped: see m/broken-images.txt\n" in err
    assert (workplace / "m/broken-images.txt").read_text() == LIST
    record = DataRecord.read(workplace / "m")
    assert record is not None
    assert record.sources["train"].num_images == 40
    status, _, err = run("train", "r.yaml", "--out", "m", "--max-broken", 0.5)
    assert (status, "resuming after step 2" in err) == (1, True)
    assert DataRecord.read(workplace / "m") == record
    # Another picture breaks: other images, so that this is another run.
    whole = (photos / "dog/30.png").read_bytes()
    (photos / "dog/30.png").write_bytes(b"")
    status, _, err = run("train", "r.yaml", "--out", "m")
    assert (status, "error: m holds a run with other data: " in err) == (2, True)
    (photos / "dog/30.png").write_bytes(whole)
    # Without the broken one the images are the same.
    (photos / "cat/x.png").unlink()
    assert run("train", "r.yaml", "--out", "m")[0] == 0
    assert not (workplace / "m/broken-images.txt").exists()


def test_the_search_for_a_learning_rate_lists_broken_images(run, workplace, photos):
    """Exit code 1 as for `train`; it was 0, and nothing said which images were skipped."""
    command = ["train", "r.yaml", "--out", "rates", "--find-lr", "--find-lr-steps", 2]
    status, out, err = run(*command)
    assert status == 1
    assert SKIPPED in err
    assert err.count("1 broken image skipped: see rates/broken-images.txt\n") == 1
    assert (workplace / "rates" / "broken-images.txt").read_text() == LIST
    assert run(*command)[:2] == (1, out)  # nothing is left to try


@pytest.mark.parametrize("given", [["--max-broken", 0], ["--set", "data.max_broken=0"]])
def test_train_without_tolerance_refuses_broken_images(run, workplace, photos, given):
    status, out, err = run("train", "r.yaml", "--out", "m", *given)
    assert (status, out) == (2, "")
    assert err.startswith("error: 1 of 41 images of photos are broken and 0 % may be (cat/x.png is unreadable): repair")
    assert not (workplace / "m").exists()
    status, _, err = run("train", "r.yaml", "--out", "m", "--set", "data.max_broken=2")
    assert (status, err) == (2, "error: data.max_broken is 2: it must be a number from 0 to 1\n")


def test_force_removes_an_old_list(run, workplace, photos):
    assert run("train", "r.yaml", "--out", "m")[0] == 1
    (photos / "cat/x.png").unlink()
    status, _, err = run("train", "r.yaml", "--out", "m", "--force")
    assert (status, "also holds" in err) == (0, False)
    assert not (workplace / "m/broken-images.txt").exists()


def test_finetune_skips_and_lists_broken_images(run, workplace, photos):
    config = ImageGPTConfig(vocab_size=11, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    processor = ImageGPTImageProcessor(ColorPalette.grey(10), size=4)
    ImageGPTPipeline(ImageGPTForCausalImageModeling(config), processor).save_pretrained("causal")
    sets = ["training.num_steps=2", "training.batch_size=8", "training.warmup_steps=1", "data.augmentation=none"]
    command = ["finetune", "./causal", "photos", "--out", "m", *(word for one in sets for word in ("--set", one))]
    status, out, err = run(*command)
    assert (status, out.startswith("accuracy on ")) == (1, True), err
    assert "1 broken image skipped: see m/broken-images.txt\n" in err
    shutil.rmtree("m")
    status, out, err = run(*command, "--max-broken", 0)
    assert (status, out) == (2, "")
    assert err.startswith("error: 1 of 41 images of photos are broken and 0 % may be")


def test_an_image_too_large_for_memory_counts_as_broken(run, workplace, photos, monkeypatch):
    """While a picture is hashed, not only while it is decoded."""
    (photos / "cat/x.png").unlink()
    from imagegpt.data import hashing

    def hash_of(path, known=hashing.pixel_hash):
        if path.name == "30.png":
            raise MemoryError("Unable to allocate")
        return known(path)

    monkeypatch.setattr(hashing, "pixel_hash", hash_of)
    status, out, err = run("evaluate", "./tiny", "photos", "--all")
    assert (status, "39 images of photos" in out) == (1, True)
    assert "skipped (huge): dog/30.png needs more memory than there is: shrink the image first\n" in err
