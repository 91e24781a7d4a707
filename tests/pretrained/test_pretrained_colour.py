"""The bundled model of colour photographs, and the photographs next to it."""

import re
from pathlib import Path

import numpy as np
import pytest
import sklearn
import torch
from PIL import Image
from transformers.models.imagegpt.modeling_imagegpt import ImageGPTForCausalImageModeling as Reference

import imagegpt
from helpers import card_scores
from imagegpt import ImageGPTForCausalImageModeling, ImageGPTImageProcessor, ImageGPTPipeline
from imagegpt.evaluation.likelihood import pixel_nll

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(imagegpt.__file__).parent / "pretrained" / "cifar10"
PHOTOS = ROOT / "examples" / "photos"
SHEETS = ROOT.parent / "shared" / "data" / "cifar10"
ALL_COLOURS_ALIKE = np.log(512)

needs_cifar = pytest.mark.skipif(not SHEETS.is_dir(), reason=f"CIFAR-10 is not at {SHEETS}")


@pytest.fixture(scope="module")
def model():
    return ImageGPTForCausalImageModeling.from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def processor():
    return ImageGPTImageProcessor.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def card():
    return card_scores(FOLDER)


def held_out(processor, sheet=0):
    """Ids of the images on one sheet of CIFAR-10 test images."""
    with Image.open(SHEETS / f"test_{sheet:02}.webp") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    images = pixels.reshape(25, 32, 40, 32, 3).transpose(0, 2, 1, 3, 4).reshape(1000, 32, 32, 3)
    first = 50_000 + 1000 * sheet
    exact = np.load(SHEETS / "exact.npy")[first : first + 1000].astype(bool)
    return processor(images[exact], return_tensors="pt")["input_ids"]


def test_folder_is_small_and_complete():
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert set(files) == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    assert sum(files.values()) < 25_000_000


def test_the_card_compares_with_what_can_be_counted(card):
    assert set(card) == {"this", "neighbours", "histogram", "uniform"}
    assert card["uniform"] == pytest.approx(ALL_COLOURS_ALIKE, abs=1e-4)
    assert card["this"] < card["neighbours"] < card["histogram"] < card["uniform"]


@pytest.mark.slow
@needs_cifar
def test_test_images_have_the_stated_likelihood(card, model, processor):
    """On 32 images: the mean is within four standard errors of the full test set's."""
    per_image = pixel_nll(model, held_out(processor)[:32]).mean(dim=1)
    assert float(per_image.mean()) == pytest.approx(card["this"], abs=4 * float(per_image.std()) / 32**0.5)
    assert float(per_image.mean()) < 3


@needs_cifar
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_card_states_likelihood(card, model, processor):
    nats = [pixel_nll(model, held_out(processor, sheet)).double().mean(dim=1) for sheet in range(10)]
    assert sum(map(len, nats)) == 9_980
    assert float(torch.cat(nats).mean()) == pytest.approx(card["this"], abs=6e-5)


def test_transformers_loads_and_matches(model, processor):
    reference = Reference.from_pretrained(FOLDER).eval()
    ids = processor(sorted(PHOTOS.glob("*.png"))[:2], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, reference(ids).logits, rtol=0, atol=1e-3)


def test_photographs_are_likely(model, processor):
    """They are photographs, though not of CIFAR-10; with shuffled pixels they are not."""
    ids = processor(sorted(PHOTOS.glob("*.png")), return_tensors="pt")["input_ids"]
    assert ids.shape == (6, 1024)
    mixed = ids[:, torch.randperm(1024, generator=torch.Generator().manual_seed(0))]
    as_they_are, in_disorder = (pixel_nll(model, x).mean(dim=1) for x in (ids, mixed))
    assert float(as_they_are.mean()) < 3.5
    assert (as_they_are < in_disorder - 1).all()


@pytest.mark.parametrize(
    ("name", "source", "box"), [("pagoda", "china", (60, 0, 487, 427)), ("flower",) * 2 + ((130, 0, 557, 427),)]
)
def test_photographs_match_their_sources(name, source, box):
    with Image.open(Path(sklearn.__file__).parent / "datasets" / "images" / f"{source}.jpg") as whole:
        again = whole.convert("RGB").crop(box).resize((32, 32), Image.Resampling.LANCZOS)
    with Image.open(PHOTOS / f"{name}.png") as photo:
        assert (photo.mode, photo.size) == ("RGB", (32, 32))
        difference = np.abs(np.asarray(photo).astype(int) - np.asarray(again))
    assert difference.max() <= 3  # decoders of JPEG may round otherwise


def test_every_photograph_has_a_licence():
    text = (PHOTOS / "README.md").read_text(encoding="utf-8")
    assert {path.name for path in PHOTOS.glob("*.png")} == set(re.findall(r"^\| `(\w+\.png)`", text, re.MULTILINE))


def test_completion_keeps_the_prompt(processor):
    pipe = ImageGPTPipeline.from_pretrained("cifar10")
    photo = PHOTOS / "cat.png"
    [[first, second]] = pipe.complete([photo], rows=30, num=2, seed=0)
    [reduced] = pipe.quantize([photo])
    for drawn in (first, second):
        assert (drawn.mode, drawn.size) == ("RGB", (32, 32))
        np.testing.assert_array_equal(np.asarray(drawn)[:30], np.asarray(reduced)[:30])
        assert {tuple(color) for color in np.asarray(drawn).reshape(-1, 3)} <= {
            tuple(color) for color in processor.palette.rgb
        }
    assert not np.array_equal(np.asarray(first), np.asarray(second))
