"""The image processor: all kinds of images to ids and back, against transformers' processor, and every error."""

import io
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers import ImageGPTConfig, ImageGPTForImageClassification, pipeline
from transformers.models.imagegpt.image_processing_pil_imagegpt import ImageGPTImageProcessorPil as Reference

from imagegpt.images.palette import ColorPalette
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.images.processor_options import OPTION_NAMES

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the data sets of {DATA} are not here")
RNG = np.random.default_rng(0)
PALETTE = ColorPalette(RNG.uniform(-1, 1, (64, 3)))
LEVELS = ColorPalette.grey(256)  # ids of grey images are their values: literals can be checked by eye
COLOURS = ColorPalette.from_rgb(
    [[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [128, 128, 128], [255, 128, 128]]
)
BLACK, RED, GREEN, BLUE, WHITE, MID, PINK = range(7)


@pytest.fixture(scope="module")
def photos():
    return [np.ascontiguousarray(photo[::2, ::2]) for photo in load_sample_images().images]


def same_size(palette=COLOURS, **options):
    return ImageGPTImageProcessor(palette, do_resize=False, **options)


def read_all_ids(image, palette=COLOURS, **options):
    return same_size(palette, **options)(image)["input_ids"][0].tolist()


# Sizes


def test_defaults_and_raster_order():
    processor = ImageGPTImageProcessor(COLOURS)
    assert processor.size == {"height": 32, "width": 32}
    assert processor.resize_mode == "crop"
    assert processor.model_input_names == ["input_ids"]
    image = np.zeros((32, 32, 3), np.uint8)
    image[0, 1], image[1, 0] = (255, 0, 0), (0, 0, 255)
    ids = processor(image)["input_ids"]
    assert ids.shape == (1, 1024)
    assert ids.dtype == np.int64
    assert np.flatnonzero(ids).tolist() == [1, 32]
    assert (ids[0, 1], ids[0, 32]) == (RED, BLUE)


@pytest.mark.parametrize("size", [48, (48, 48), [48, 48], {"height": 48, "width": 48}, np.int64(48)])
def test_ways_to_give_a_size(size):
    assert ImageGPTImageProcessor(size=size).size == {"height": 48, "width": 48}


@pytest.mark.parametrize(("width", "height"), [(90, 40), (40, 90), (64, 64), (33, 32), (5, 9), (1, 300), (32, 32)])
@pytest.mark.parametrize("size", [(32, 32), (16, 24), (24, 16)])
def test_crop_keeps_the_aspect_ratio(width, height, size):
    """As in the paper: resize the shorter side, crop the centre; the reference uses Pillow alone."""
    image = Image.fromarray(RNG.integers(0, 256, (height, width, 3), np.uint8))
    scale = max(size[0] / height, size[1] / width)
    large = image.resize((max(size[1], round(width * scale)), max(size[0], round(height * scale))), Image.BILINEAR)
    left, top = (large.width - size[1]) // 2, (large.height - size[0]) // 2
    wanted = np.asarray(large)[top : top + size[0], left : left + size[1]]
    processor = ImageGPTImageProcessor(PALETTE, size=size)
    assert np.array_equal(processor.to_rgb(image)[0], wanted)
    assert np.array_equal(processor(image)["input_ids"][0], PALETTE.encode(wanted).reshape(-1))


def test_crop_shows_the_middle_and_squash_everything():
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, 20:40] = (255, 0, 0)
    crop = ImageGPTImageProcessor(COLOURS, size=20)
    assert set(crop(image)["input_ids"][0].tolist()) == {RED}
    squash = ImageGPTImageProcessor(COLOURS, size=20, resize_mode="squash", resample=Image.NEAREST)
    assert np.bincount(squash(image)["input_ids"][0]).tolist()[:2] == [20 * 14, 20 * 6]  # 60 -> 20 columns, 6 or 7 red


def test_resample_is_used(photos):
    results = {tuple(ImageGPTImageProcessor(PALETTE, resample=r)(photos[0])["input_ids"][0]) for r in Image.Resampling}
    assert len(results) == len(Image.Resampling)


# Kinds of images


def test_pillow_modes_that_hold_one_colour():
    red = Image.new("RGB", (3, 2), "red")
    for mode in ("RGB", "RGBA", "RGBX", "P", "CMYK", "YCbCr", "HSV"):
        assert read_all_ids(red.convert(mode)) == [RED] * 6, mode
    for mode in ("1", "L", "LA", "La", "PA"):
        source = Image.new("LA" if mode == "La" else "L", (3, 2), "white")
        assert read_all_ids(source.convert(mode)) == [WHITE] * 6, mode
    assert read_all_ids(Image.new("LAB", (3, 2), (255, 128, 128))) == [WHITE] * 6
    assert read_all_ids(Image.new("LAB", (3, 2), (0, 128, 128))) == [BLACK] * 6


def test_sixteen_bits_and_floats_use_their_full_range():
    """Pillow's own convert("L") clips I;16 and F: 1000 would be white."""
    values = np.array([[0, 128, 129, 1000, 32_896, 65_535]], np.uint16)
    wanted = [0, 0, 1, 4, 128, 255]
    assert read_all_ids(Image.fromarray(values), LEVELS) == wanted
    assert Image.fromarray(values).mode == "I;16"
    assert read_all_ids(Image.fromarray(values.astype(np.int32)), LEVELS) == wanted
    assert read_all_ids(values, LEVELS) == wanted
    assert read_all_ids(torch.from_numpy(values), LEVELS) == wanted
    floats = np.array([[0, 0.25, 0.5, 1]], np.float32)
    assert read_all_ids(Image.fromarray(floats), LEVELS) == [0, 64, 128, 255]
    for given in (floats, floats.astype(np.float16), floats.astype(np.float64), torch.tensor(floats).bfloat16()):
        assert read_all_ids(given, LEVELS) == [0, 64, 128, 255]


def test_sixteen_bit_files(tmp_path):
    values = np.array([[0, 1000, 65_535]], np.uint16)
    for name in ("a.png", "a.tiff"):
        Image.fromarray(values).save(tmp_path / name)
        assert read_all_ids(tmp_path / name, LEVELS) == [0, 4, 255]


def test_transparency_shows_the_background():
    image = Image.new("RGBA", (3, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 255, 0, 0))
    image.putpixel((2, 0), (255, 0, 0, 127))
    assert read_all_ids(image) == [RED, WHITE, PINK]
    assert read_all_ids(image, background="blue")[:2] == [RED, BLUE]
    assert read_all_ids(image, background=[0, 255, 0])[:2] == [RED, GREEN]
    assert read_all_ids(np.asarray(image)) == [RED, WHITE, PINK]
    assert read_all_ids(np.asarray(image.resize((6, 1), 0)).transpose(2, 0, 1)) == [RED, RED, WHITE, WHITE, PINK, PINK]
    assert read_all_ids(image.convert("RGBa")) == [RED, WHITE, PINK]
    grey = Image.new("LA", (2, 1), (0, 255))
    grey.putpixel((1, 0), (0, 0))
    assert read_all_ids(grey) == [BLACK, WHITE]
    assert read_all_ids(grey.convert("La")) == [BLACK, WHITE]


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
def test_transparent_colours_of_files(tmp_path, mode):
    """PNG and GIF may declare one colour or palette entry transparent."""
    image = Image.new("RGB", (2, 1), "black")
    image.putpixel((1, 0), (255, 255, 255))
    image = image.convert(mode, palette=Image.Palette.ADAPTIVE, colors=2) if mode == "P" else image.convert(mode)
    black = image.getpixel((0, 0))
    image.save(tmp_path / "a.png", transparency=black)
    assert read_all_ids(tmp_path / "a.png", background="red") == [RED, WHITE]


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (2, 1), "red")
    image.putpixel((1, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    image.save(tmp_path / "a.png", exif=exif)
    processor = same_size()
    assert processor.to_rgb(tmp_path / "a.png").shape == (1, 2, 1, 3)
    assert read_all_ids(tmp_path / "a.png") == [RED, BLUE]
    with Image.open(tmp_path / "a.png") as opened:
        assert processor.to_rgb(opened).shape == (1, 2, 1, 3)


def test_arrays_and_tensors_of_every_layout():
    rgb = RNG.integers(0, 256, (5, 7, 3), np.uint8)
    wanted = PALETTE.encode(rgb).reshape(-1).tolist()
    for given in (
        rgb,
        rgb.transpose(2, 0, 1),
        rgb / 255,
        torch.from_numpy(rgb),
        torch.tensor(rgb / 255).permute(2, 0, 1),
    ):
        assert read_all_ids(given, PALETTE) == wanted
    assert read_all_ids((rgb.astype(np.uint16) * 257), PALETTE) == wanted
    grey = RNG.integers(0, 256, (5, 7), np.uint8)
    for given in (grey, grey[..., None], grey[None], torch.from_numpy(grey), np.asfortranarray(grey)):
        assert read_all_ids(given, LEVELS) == grey.reshape(-1).tolist()
    assert read_all_ids(grey > 100, LEVELS) == (255 * (grey > 100)).reshape(-1).tolist()
    tracked = torch.full((2, 2), 0.5, requires_grad=True)
    assert read_all_ids(tracked, LEVELS) == [128] * 4


def test_ambiguous_arrays_are_channels_last():
    array = RNG.integers(0, 256, (3, 5, 3), np.uint8)
    assert read_all_ids(array, PALETTE) == PALETTE.encode(array).reshape(-1).tolist()
    four = RNG.integers(0, 256, (3, 9, 1), np.uint8)
    assert read_all_ids(four, LEVELS) == four.reshape(-1).tolist()


def test_batches_and_mixed_lists(tmp_path):
    batch = RNG.integers(0, 256, (4, 32, 32, 3), np.uint8)
    processor = ImageGPTImageProcessor(PALETTE)
    wanted = PALETTE.encode(batch).reshape(4, -1)
    path = tmp_path / "a.png"
    Image.fromarray(batch[0]).save(path)
    mixed = [str(path), Image.fromarray(batch[1]), torch.from_numpy(batch[2]), batch[3] / 255]
    channel_first = batch.transpose(0, 3, 1, 2)
    for given in (batch, list(batch), tuple(batch), mixed, channel_first, torch.from_numpy(channel_first.copy())):
        assert np.array_equal(processor(given)["input_ids"], wanted)
    assert np.array_equal(processor(path)["input_ids"], wanted[:1])
    assert np.array_equal(
        processor(batch[:, :, :, :1])["input_ids"], PALETTE.encode(batch[..., [0, 0, 0]]).reshape(4, -1)
    )


def test_inputs_are_not_modified():
    batch = RNG.integers(0, 256, (2, 32, 32, 3), np.uint8)
    before = batch.copy()
    ImageGPTImageProcessor(PALETTE)(batch)["input_ids"][:] = 0
    ImageGPTImageProcessor(do_color_quantize=False)(batch)["pixel_values"][:] = 0
    assert np.array_equal(batch, before)


def test_return_types_and_pixel_values():
    image = np.array([[[0, 51, 255]]], np.uint8)
    processor = same_size()
    assert isinstance(processor(image)["input_ids"], np.ndarray)
    assert isinstance(processor(image, return_tensors="np")["input_ids"], np.ndarray)
    ids = processor(image, return_tensors="pt")["input_ids"]
    assert ids.dtype == torch.int64
    for options, wanted in (
        ({}, [-1, -0.6, 1]),
        ({"do_normalize": False}, [0, 0.2, 1]),
        ({"do_normalize": False, "do_rescale": False}, [0, 51, 255]),
    ):
        values = same_size(None, do_color_quantize=False, **options)(image, return_tensors="pt")["pixel_values"]
        assert values.shape == (1, 3, 1, 1)
        assert values.dtype == torch.float32
        assert values.flatten().tolist() == pytest.approx(wanted, abs=1e-6)


# Back to images


def test_decode_inverts_call(photos):
    processor = ImageGPTImageProcessor(PALETTE, size=(24, 40))
    ids = processor(photos, return_tensors="pt")["input_ids"]
    images = processor.decode(ids)
    assert [(image.mode, image.size) for image in images] == [("RGB", (40, 24))] * 2
    again = processor(images)["input_ids"]
    rounded = PALETTE.encode(PALETTE.rgb)[ids]  # a colour is its own nearest, unless another rounds to the same
    assert np.array_equal(again, rounded)


def test_decode_forms_of_ids():
    processor = ImageGPTImageProcessor(COLOURS, size=(1, 2))
    sos = len(COLOURS)
    for ids in ([RED, BLUE], [[RED, BLUE]], np.array([RED, BLUE], np.uint16), torch.tensor([[sos, RED, BLUE]])):
        (image,) = processor.decode(ids)
        assert np.asarray(image).tolist() == [[[255, 0, 0], [0, 0, 255]]]
    assert [image.size for image in processor.decode([[0] * 6] * 3, size=(3, 2))] == [(2, 3)] * 3


def test_grey_palettes_decode_to_grey_images():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    (decoded,) = same_size(LEVELS).decode(image.reshape(-1), size=(3, 4))
    assert decoded.mode == "L"
    assert np.array_equal(np.asarray(decoded), image)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[0] * 5], "each image has 5 ids, 2x2 pixels are 4: give that many, or the size they have"),
        ([0], "each image has 1 ids, 2x2 pixels are 4: give that many, or the size they have"),
        ([[0, 0, 0, 7]], "ids range from 0 to 7, this palette has colours 0 to 6; 7 is the start token, drop it first"),
        ([[7, 0, 0, 0, 0], [0] * 5], "each image has 5 ids, 2x2 pixels are 4"),
        (np.zeros((1, 2, 2), int), "ids have shape (1, 2, 2): they must be (images, pixels) or (pixels,)"),
        ([[0.0] * 4], "ids are float64: they must be integers, 0 to 6"),
        ([[0] * 4, [0] * 3], "the rows of ids differ in length: every image must have the same number"),
    ],
)
def test_refused_ids(ids, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ImageGPTImageProcessor(COLOURS, size=2).decode(ids)


# Beside transformers


def both(palette, size, **options):
    clusters = palette.clusters.tolist()
    ours = ImageGPTImageProcessor(clusters=clusters, size=size, resize_mode="squash", **options)
    return ours, Reference(clusters=clusters, size=size, **options)


def assert_same_ids(ours, reference, images):
    wanted = np.asarray(reference(images, return_tensors="np")["input_ids"])
    assert np.array_equal(ours(images)["input_ids"], wanted)


@pytest.mark.slow
@pytest.mark.parity
@needs_data
def test_cifar_ids_match_transformers():
    sheet = np.asarray(Image.open(DATA / "cifar10" / "test_03.webp").convert("RGB"))
    images = sheet.reshape(25, 32, 40, 32, 3).transpose(0, 2, 1, 3, 4).reshape(1000, 32, 32, 3)
    ours, reference = both(ColorPalette.load(DATA / "palette"), {"height": 32, "width": 32})
    for start in range(0, 1000, 20):  # the reference holds all distances of a batch: 84 MB for 20 images
        assert_same_ids(ours, reference, [Image.fromarray(image) for image in images[start : start + 20]])


@pytest.mark.parity
@pytest.mark.parametrize("size", [{"height": 32, "width": 32}, {"height": 48, "width": 64}])
@pytest.mark.parametrize("resample", list(Image.Resampling))
def test_resized_photo_ids_match_transformers(photos, size, resample):
    ours, reference = both(PALETTE, size, resample=int(resample))
    assert_same_ids(ours, reference, [Image.fromarray(photo) for photo in photos])


@pytest.mark.parity
def test_pixel_values_match_transformers(photos):
    ours, reference = both(PALETTE, {"height": 32, "width": 32}, do_resize=False)
    assert_same_ids(ours, reference, [Image.fromarray(photo[:60, :50]) for photo in photos])
    ours, reference = both(PALETTE, {"height": 32, "width": 32}, do_color_quantize=False)
    wanted = np.stack(reference(photos, return_tensors="np")["pixel_values"])
    assert np.allclose(ours(photos)["pixel_values"], wanted, rtol=0, atol=2e-7)


@pytest.mark.parity
def test_defect_10_the_reference_rejects_grey_and_transparent_images_and_ours_takes_them(photos):
    """paper.md, last list, 10: three inputs, three different errors, none of which names the cause."""
    ours, reference = both(PALETTE, {"height": 32, "width": 32})
    photo = Image.fromarray(photos[0])
    for image, message in (
        (photo.convert("L"), "mean must have 1 elements if it is an iterable, got 3"),
        (photo.convert("RGBA"), "mean must have 4 elements if it is an iterable, got 3"),
        (np.asarray(photo.convert("L")), "Could not make a flat list of images from"),
    ):
        with pytest.raises(ValueError, match=message):
            reference(image, return_tensors="np")
        assert ours(image)["input_ids"].shape == (1, 1024)
    grey = photo.convert("L")
    assert np.array_equal(ours(grey)["input_ids"], ours(grey.convert("RGB"))["input_ids"])


@pytest.mark.parity
def test_defect_10_the_reference_defaults_to_256_squashes_and_cannot_decode(photos):
    clusters = PALETTE.clusters.tolist()
    wide = Image.fromarray(photos[0][:50])
    reference, ours = Reference(clusters=clusters), ImageGPTImageProcessor(PALETTE)
    assert len(reference(wide)["input_ids"][0]) == 256 * 256
    assert ours(wide)["input_ids"].shape == (1, 32 * 32)
    small = Reference(clusters=clusters, size={"height": 32, "width": 32})
    squashed = PALETTE.encode(np.asarray(wide.resize((32, 32), Image.BILINEAR))).reshape(-1)
    assert np.array_equal(small(wide)["input_ids"][0], squashed)
    assert not np.array_equal(ours(wide)["input_ids"][0], squashed)
    assert not hasattr(reference, "decode")
    assert ours.decode(ours(wide)["input_ids"])[0].size == (32, 32)


@pytest.mark.parity
def test_ties_differ_from_transformers():
    """With levels 16 apart, as in the digits palette, midpoints are ties; ours always take the lower id."""
    palette = ColorPalette.grey(17)
    ours, reference = both(palette, {"height": 32, "width": 32}, do_resize=False)
    image = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    theirs = np.asarray(reference(image, return_tensors="np")["input_ids"])[0]
    distances = np.abs(np.arange(256)[:, None] - palette.rgb[:, 0].astype(int))
    assert np.array_equal(ours(image)["input_ids"][0], np.argmin(distances, axis=1))
    differing = np.flatnonzero(theirs != np.argmin(distances, axis=1))
    assert len(differing) > 0
    assert all(np.sort(distances[level])[0] == np.sort(distances[level])[1] for level in differing)


# Folders


@pytest.mark.parity
def test_our_folder_loads_in_transformers(tmp_path, photos):
    ours = ImageGPTImageProcessor(PALETTE, size=(24, 32), resize_mode="squash", resample=3, background="red")
    ours.save_pretrained(tmp_path)
    reference = Reference.from_pretrained(tmp_path)
    assert_same_ids(ours, reference, [Image.fromarray(photo) for photo in photos])
    again = ImageGPTImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == ours.to_dict()
    assert again.palette == PALETTE


@pytest.mark.parity
def test_transformers_folder_loads_and_squashes(tmp_path, photos):
    reference = Reference(clusters=PALETTE.clusters.tolist(), size={"height": 32, "width": 48}, resample=1)
    reference.save_pretrained(tmp_path)
    ours = ImageGPTImageProcessor.from_pretrained(tmp_path)
    assert ours.resize_mode == "squash"
    assert_same_ids(ours, reference, [Image.fromarray(photo) for photo in photos])


def test_old_configurations_load(tmp_path):
    """As in OpenAI's checkpoints on the hub: a feature extractor, an int for the size, no rescale."""
    config = {"clusters": COLOURS.clusters.tolist(), "do_normalize": True, "do_resize": True, "resample": 2, "size": 32}
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**config, "feature_extractor_type": "ImageGPTFeatureExtractor"}))
    for processor in (ImageGPTImageProcessor.from_pretrained(tmp_path), ImageGPTImageProcessor.from_json_file(path)):
        assert processor.size == {"height": 32, "width": 32}
        assert processor.resize_mode == "squash"
        assert processor.palette == COLOURS


def test_loading_with_other_options(tmp_path, caplog):
    ImageGPTImageProcessor(COLOURS).save_pretrained(tmp_path)
    load = ImageGPTImageProcessor.from_pretrained
    assert load(tmp_path).resize_mode == "crop"
    assert load(tmp_path, size=8, resize_mode="squash").to_dict()["size"] == {"height": 8, "width": 8}
    assert load(tmp_path, palette=PALETTE).palette == PALETTE
    assert load(tmp_path, clusters=PALETTE.clusters).palette == PALETTE
    load(tmp_path, dtype="auto", code_revision=None)  # what pipelines pass along
    assert not caplog.messages
    processor, unused = load(tmp_path, size=8, torch_dtype="auto", return_unused_kwargs=True)
    assert processor.size["height"] == 8
    assert unused == {"torch_dtype": "auto"}
    load(tmp_path, sise=8)
    assert caplog.messages == ["ignored options that the image processor does not have: sise"]


def test_transformers_pipelines_accept_the_processor():
    config = ImageGPTConfig(
        vocab_size=8, n_positions=65, n_embd=8, n_layer=1, n_head=2, num_labels=2, pad_token_id=None
    )
    model = ImageGPTForImageClassification(config).eval()
    processor = ImageGPTImageProcessor(COLOURS, size=8)
    image = Image.new("L", (20, 30), 255)
    direct = model(**processor(image, return_tensors="pt")).logits[0].softmax(-1).tolist()
    answers = pipeline("image-classification", model=model, image_processor=processor)([image, image.convert("RGBA")])
    for answer in answers:
        assert {row["label"]: row["score"] for row in answer} == pytest.approx(
            dict(zip(config.id2label.values(), direct, strict=True))
        )


def test_without_a_palette_a_folder_still_round_trips(tmp_path):
    ImageGPTImageProcessor(do_color_quantize=False).save_pretrained(tmp_path)
    assert ImageGPTImageProcessor.from_pretrained(tmp_path).palette is None


def test_saving_leaves_nothing_behind_on_failure(tmp_path, monkeypatch):
    processor = ImageGPTImageProcessor(COLOURS)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=rf"cannot create the folder {tmp_path / 'file'} \(File exists\): choose another"):
        processor.save_pretrained(tmp_path / "file")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match=r"the processor's configuration cannot be written to .* \(No space left"):
        processor.save_pretrained(tmp_path / "folder")
    assert list((tmp_path / "folder").iterdir()) == []


def test_repr_is_short():
    shown = repr(ImageGPTImageProcessor(COLOURS))
    assert shown.startswith("ImageGPTImageProcessor(ColorPalette(7 colours, ")
    assert len(shown) < 500


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"palette": COLOURS, "clusters": [[0, 0, 0]] * 2}, "both palette and clusters were given: give one of them"),
        ({"palette": [[0, 0, 0]] * 2}, "palette is a list: give a ColorPalette, or the colours as clusters"),
        ({"clusters": [[0, 0]] * 2}, "the palette has shape (2, 2): it must be (number of colours, 3)"),
        ({"resize_mode": "pad"}, "resize_mode is 'pad': choose one of crop, squash"),
        ({"resample": 9}, "resample is 9: choose one of Pillow's filters, 0 to 5"),
        (
            {"size": 0},
            "size is 0: each side must be an integer from 1 to 1,024 (pixels), give them as 32, (32, 48) or",
        ),
        ({"size": (3, -1)}, "size is (3, -1): each side must be"),
        ({"size": 2.5}, "size is 2.5: each side must be"),
        ({"size": True}, "size is True: each side must be"),
        ({"size": {"shortest_edge": 32}}, "size is {'shortest_edge': 32}: each side must be"),
        ({"background": (0, 0, 256)}, "background is (0, 0, 256): give (red, green, blue), 0 to 255, or a name such"),
        ({"background": "no colour"}, "background is 'no colour': give (red, green, blue)"),
        ({"background": 7}, "background is 7: give (red, green, blue)"),
        ({"do_resize": "no"}, "do_resize is 'no': it must be True or False"),
        ({"do_rescale": False}, "do_rescale is False and do_color_quantize is True: the palette is on the normalised"),
        ({"do_normalize": False}, "do_normalize is False and do_color_quantize is True: the palette is on the normal"),
        ({"do_color_quantize": False, "do_rescale": False}, "do_rescale is False and do_normalize is True: normalise"),
        ({"sise": 32}, "there is no option 'sise': see the arguments of ImageGPTImageProcessor"),
        ({"do_center_crop": True}, "do_center_crop is True: this processor only takes False, leave it out"),
        (
            {"image_mean": [0, 0, 0]},
            "image_mean is (0.0, 0.0, 0.0) and do_color_quantize is True: the palette",
        ),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ImageGPTImageProcessor(**options)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ([], "the list of images is empty: give at least one image"),
        (np.zeros((0, 4, 4, 3), np.uint8), "the list of images is empty: give at least one image"),
        (np.zeros((0, 32, 32, 3), np.uint8), "the list of images is empty: give at least one image"),
        (np.zeros((0, 4, 3), np.uint8), "an array of shape (0, 4, 3) has no pixels: the image must have at least one"),
        (Image.new("RGB", (0, 4)), "the image is 0x4 pixels: it must have at least one"),
        (
            np.zeros((5, 7, 2), np.uint8),
            "an array of shape (5, 7, 2) is not an image: give (height, width), or 1, 3 or 4",
        ),
        (np.zeros(7, np.uint8), "an array of shape (7,) is not an image"),
        (np.zeros((1, 1, 5, 5, 3), np.uint8), "an array of shape (1, 1, 5, 5, 3) is not an image"),
        (np.zeros((4, 4), np.int64), "the image's values are int64: give uint8, bool, uint16 or floats in [0, 1]"),
        (np.zeros((4, 4), object), "the image's values are object: give uint8"),
        (np.zeros((4, 4), complex), "the image's values are complex128: give uint8"),
        (torch.zeros(4, 4, dtype=torch.int32), "the image's values are int32: give uint8"),
        (np.array([[0, np.nan]]), "the image contains NaN: floats must be 0 to 1"),
        (np.array([[0, 200.0]]), "the image's floats range from 0 to 200: they must be 0 to 1, or be uint8"),
        (np.array([[-1.0, 1]]), "the image's floats range from -1 to 1: they must be 0 to 1, or be uint8"),
        (np.array([[0, np.inf]]), "the image's floats range from 0 to inf: they must be 0 to 1, or be uint8"),
        (
            Image.fromarray(np.array([[7, 70_000]], np.int32)),
            "the image of mode I has values 7 to 70000: they must be",
        ),
        (
            Image.fromarray(np.array([[0, 7]], np.float32)),
            "the image's floats range from 0 to 7: they must be 0 to 1",
        ),
        (None, "a NoneType is not an image: give a path, a Pillow image, an array or a tensor"),
        (3.5, "a float is not an image"),
        ([[1, 2], [3, 4]], "image 0 of 4: a int is not an image"),
        ([Image.new("L", (4, 4)), b"x"], "image 1 of 2: a bytes is not an image"),
    ],
)
def test_refused_images(image, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ImageGPTImageProcessor(COLOURS)(image)


def saved(image, file_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def test_refused_files(tmp_path, photos):
    processor = ImageGPTImageProcessor(COLOURS)
    photo = Image.fromarray(photos[0])
    path = tmp_path / "a"
    for missing in (path, "http://example.com/a.png", tmp_path):
        with pytest.raises(
            FileNotFoundError, match=r"there is no file .*: check the path, and download images from the"
        ):
            processor(missing)
    with pytest.raises(FileNotFoundError, match="image 1 of 2: there is no file"):
        processor([photo, path])
    for content in (b"", b"text", b"\x89PNG\r\n\x1a\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a is not an image that Pillow can read: convert it, for example to PNG"):
            processor(path)
    for file_format in ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"):
        content = saved(photo, file_format)
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(
            ValueError, match=f"{path} (cannot be decoded, it may be truncated|is not an image)"
        ) as caught:
            processor(path)
        assert "\n" not in str(caught.value)
    damaged = bytearray(saved(photo, "PNG"))
    damaged[200:260] = bytes(60)
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=f"{path} cannot be decoded, it may be truncated"):
        processor(path)
    with (
        Image.open(io.BytesIO(saved(photo, "JPEG")[:3_000])) as opened,
        pytest.raises(ValueError, match="the image cannot be decoded, it may be truncated"),
    ):
        processor(opened)


@pytest.mark.parametrize("limit", [50, 30])  # 99 pixels: above the limit a warning, above twice the limit an error
def test_decompression_bombs_are_refused(tmp_path, monkeypatch, limit):
    Image.new("L", (9, 11)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        with pytest.raises(ValueError, match=f"a.png has more pixels than Pillow's limit of {limit}: shrink the image"):
            ImageGPTImageProcessor(COLOURS)(tmp_path / "a.png")


def test_refused_calls():
    processor = ImageGPTImageProcessor(COLOURS)
    image = np.zeros((4, 4), np.uint8)
    with pytest.raises(ValueError, match="return_tensors is 'tf': choose one of pt, np"):
        processor(image, return_tensors="tf")
    with pytest.raises(ValueError, match="there is no option 'sise': see the arguments of ImageGPTImageProcessor"):
        processor(image, sise=3)
    with pytest.raises(ValueError, match="this processor has no palette: give it one, or set do_color_quantize to Fal"):
        ImageGPTImageProcessor()(image)
    with pytest.raises(ValueError, match="this processor has no palette: give it one to decode ids"):
        ImageGPTImageProcessor().decode([0])
    with pytest.raises(ValueError, match=re.escape("the images differ in height and width ((4, 4), (5, 4))")):
        same_size()([image, np.zeros((5, 4), np.uint8)])


# Options of one call, as transformers' processors take them


def test_call_options_apply_to_one_call(photos):
    """An option passed to a call has the same effect as in the constructor, for that call only."""
    base = {"size": 8, "do_color_quantize": False}
    processor = ImageGPTImageProcessor(COLOURS, **base)
    before = processor.to_dict()
    image = Image.fromarray(photos[0][:60, :80])
    calls = {
        "size": {"height": 5, "width": 7},
        "resize_mode": "squash",
        "resample": 0,
        "do_resize": False,
        "do_rescale": {"do_rescale": False, "do_normalize": False},
        "rescale_factor": 0.5,
        "do_normalize": False,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.1, 0.2, 0.3],
        "data_format": "channels_last",
        "do_color_quantize": True,
        "clusters": {"clusters": PALETTE.clusters, "do_color_quantize": True},
        "palette": {"palette": PALETTE, "do_color_quantize": True},
        "return_tensors": "pt",
    }
    plain = processor(image)["pixel_values"]
    for name, value in calls.items():
        given = value if isinstance(value, dict) and name != "size" else {name: value}
        made = {**base, **given}
        if not {"palette", "clusters"} & set(given):
            made["palette"] = COLOURS
        called, wanted = processor(image, **given), ImageGPTImageProcessor(**made)(image)
        assert called.keys() == wanted.keys(), name
        for key in wanted:
            assert type(called[key]) is type(wanted[key]), name
            assert np.array_equal(called[key], wanted[key]), name
            assert not (type(called[key]) is type(plain) and np.array_equal(called[key], plain)), f"{name} does nothing"
    assert processor.to_dict() == before
    assert np.array_equal(processor(image)["pixel_values"], plain)


def test_call_option_of_none_uses_the_processors():
    processor = ImageGPTImageProcessor(COLOURS, size=4)
    given = dict.fromkeys(ImageGPTImageProcessor.valid_kwargs.__annotations__)
    image = np.zeros((4, 4), np.uint8)
    assert np.array_equal(processor(image, **given)["input_ids"], processor(image)["input_ids"])


def test_changed_attributes_take_effect():
    """Users of transformers set attributes after loading, and may modify the size in place."""
    processor = ImageGPTImageProcessor(COLOURS, size=4)
    image = np.zeros((8, 8), np.uint8)
    processor(image)
    processor.size["height"] = 2
    assert processor(image)["input_ids"].shape == (1, 8)
    processor.do_color_quantize, processor.do_resize = False, False
    assert processor(image)["pixel_values"].shape == (1, 3, 8, 8)
    processor.resample = 9
    with pytest.raises(ValueError, match="resample is 9: choose one of Pillow's filters, 0 to 5"):
        processor(image)


def test_pixel_values_with_other_statistics():
    image = np.array([[[0, 51, 255]]], np.uint8)
    processor = same_size(None, do_color_quantize=False)
    values = processor(image, image_mean=[0, 0.2, 0.5], image_std=[1, 0.1, 0.25])["pixel_values"]
    assert values.shape == (1, 3, 1, 1)
    assert values.flatten().tolist() == pytest.approx([0, 0, 2], abs=1e-6)
    values = processor(image, rescale_factor=1 / 127.5, image_mean=1, image_std=1)["pixel_values"]
    assert values.flatten().tolist() == pytest.approx([-1, -0.6, 1], abs=1e-6)
    last = processor(np.zeros((2, 5, 3), np.uint8), data_format="channels_last")["pixel_values"]
    assert last.shape == (1, 2, 5, 3)


def test_tensors_are_put_on_the_device():
    processor = same_size(None, do_color_quantize=False)
    image = np.zeros((2, 2, 3), np.uint8)
    assert processor(image, return_tensors="pt", device="meta")["pixel_values"].device.type == "meta"
    assert processor(image, return_tensors="pt", device=torch.device("cpu"))["pixel_values"].device.type == "cpu"
    ids = same_size()(image, return_tensors="pt", device="meta")["input_ids"]
    assert ids.device.type == "meta"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"do_resize": "no"}, "do_resize is 'no': it must be True or False"),
        ({"size": {"shortest_edge": 3}}, "size is {'shortest_edge': 3}: each side must be"),
        ({"do_normalize": False}, "do_normalize is False and do_color_quantize is True"),
        ({"image_std": 1}, "image_std is (1.0, 1.0, 1.0) and do_color_quantize is True: the palette requires (0.5"),
        ({"rescale_factor": 1}, "rescale_factor is 1.0 and do_color_quantize is True: the palette requires 1/255"),
        ({"image_mean": [1, 2]}, "image_mean is [1, 2]: give one number, or three, one per colour"),
        ({"image_mean": float("nan")}, "image_mean is nan: it must be a number from -1,000 to 1,000"),
        ({"image_std": [1, 0, 1]}, "image_std is 0: it must be a number greater than 0 and at most 1,000"),
        ({"rescale_factor": "x"}, "rescale_factor is 'x': it must be a number greater than 0 and at most 1,000"),
        ({"data_format": "none"}, "data_format is 'none': choose one of channels_first, channels_last"),
        ({"input_data_format": "hwc"}, "input_data_format is 'hwc': choose one of channels_first, channels_last, none"),
        ({"do_pad": True}, "do_pad is True: this processor only takes False, leave it out"),
        ({"device": "nowhere", "return_tensors": "pt"}, "there is no device 'nowhere' here: give cpu, or a GPU of"),
        ({"device": "meta"}, "device is 'meta' and return_tensors is None: arrays are on the CPU, set return_tensors"),
        ({"palette": COLOURS, "clusters": COLOURS.clusters}, "both palette and clusters were given: give one of them"),
    ],
)
def test_refused_options_of_a_call(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ImageGPTImageProcessor(COLOURS)(np.zeros((4, 4), np.uint8), **options)


def test_do_convert_rgb_false_is_saved(tmp_path):
    """Regression: do_convert_rgb was lost by save and load."""
    rgb = Image.new("RGB", (2, 2))
    for value in (True, False):
        processor = same_size(do_convert_rgb=value)
        processor.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "preprocessor_config.json").read_text())["do_convert_rgb"] is value
        again = ImageGPTImageProcessor.from_pretrained(tmp_path)
        assert again.do_convert_rgb is value
        assert again(rgb)["input_ids"].shape == (1, 4)
    assert ImageGPTImageProcessor.from_pretrained(tmp_path, do_convert_rgb=True)(rgb.convert("L"))
    for image, message in (
        (
            rgb.convert("L"),
            "the image has mode 'L' and do_convert_rgb is False: give RGB images, or set do_convert_rgb",
        ),
        (rgb.convert("RGBA"), "the image has mode 'RGBA' and do_convert_rgb is False"),
        (np.zeros((2, 2), np.uint8), "an array of shape (2, 2) has 1 channels and do_convert_rgb is False"),
        (np.zeros((2, 2, 4), np.uint8), "an array of shape (2, 2, 4) has 4 channels and do_convert_rgb is False"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            processor(image)


def test_every_option_survives_save_and_load(tmp_path):
    """`to_dict` contains every option."""
    options = {
        "size": {"height": 3, "width": 5}, "resize_mode": "squash", "resample": 0, "background": [1, 2, 3],
        "do_convert_rgb": False, "do_resize": False, "do_color_quantize": False, "do_rescale": True,
        "rescale_factor": 0.5, "do_normalize": False, "image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 2.0, 3.0],
        "input_data_format": "channels_last", "data_format": "channels_last", "device": "cpu", "return_tensors": "pt",
    }  # fmt: skip
    processor = ImageGPTImageProcessor(COLOURS, **options)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert {name: saved[name] for name in options} == options
    again = ImageGPTImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert set(options) == set(OPTION_NAMES)


# Batches of grey arrays, and arrays that can be read in two ways


def test_grey_arrays_come_in_batches():
    grey = RNG.integers(0, 256, (9, 5, 7), np.uint8)
    wanted = grey.reshape(9, -1).tolist()
    for given in (grey, torch.from_numpy(grey), list(grey), grey[..., None], grey / 255):
        assert same_size(LEVELS)(given)["input_ids"].tolist() == wanted
    in_a_list = same_size(LEVELS)([grey[:5], grey[5:]], input_data_format="none")
    assert in_a_list["input_ids"].tolist() == wanted
    assert same_size(LEVELS)([[grey[0]], list(grey[1:])])["input_ids"].tolist() == wanted  # nested lists
    assert same_size(LEVELS)(grey[:2])["input_ids"].tolist() == wanted[:2]


def test_ambiguous_arrays_follow_the_documented_rule():
    """Channels last, then channels first, then grey batches; `input_data_format` overrides."""

    def shape(array, **options):
        return same_size(None, do_color_quantize=False)(array, **options)["pixel_values"].shape

    three = np.zeros((3, 6, 8), np.uint8)
    assert shape(three) == (1, 3, 6, 8)
    assert shape(three, input_data_format="channels_first") == (1, 3, 6, 8)
    assert shape(three, input_data_format="none") == (3, 3, 6, 8)
    narrow = np.zeros((3, 6, 4), np.uint8)
    assert shape(narrow) == (1, 3, 3, 6)
    assert shape(narrow, input_data_format="channels_last") == (1, 3, 3, 6)
    assert shape(narrow, input_data_format="channels_first") == (1, 3, 6, 4)
    assert shape(narrow, input_data_format="none") == (3, 3, 6, 4)
    assert shape(np.zeros((5, 6, 3), np.uint8), input_data_format="none") == (5, 3, 6, 3)
    batch = np.zeros((2, 3, 6, 4), np.uint8)
    assert shape(batch) == (2, 3, 3, 6)
    assert shape(batch, input_data_format="channels_first") == (2, 3, 6, 4)
    assert shape(np.zeros((6, 8), np.uint8), input_data_format="channels_last") == (1, 3, 6, 8)
    ready = np.zeros((2, 3, 3, 3), np.uint8)
    ready[:, 0] = 255  # the first row, or the red channel
    processor = ImageGPTImageProcessor(COLOURS, size=3)
    assert processor(ready)["input_ids"][0].tolist() == [WHITE] * 3 + [BLACK] * 6
    assert processor(ready, input_data_format="channels_first")["input_ids"][0].tolist() == [RED] * 9


@pytest.mark.parametrize(
    ("shape", "input_data_format", "message"),
    [
        (
            (6, 8, 2),
            None,
            "an array of shape (6, 8, 2) is not an image: give (height, width), or 1, 3 or 4 channels last or",
        ),
        (
            (6, 8, 5),
            "channels_last",
            "an array of shape (6, 8, 5) is not an image: give (height, width), or 1, 3 or 4 chan",
        ),
        ((3, 8, 5), "channels_last", "1, 3 or 4 channels last"),
        ((6, 8, 3), "channels_first", "1, 3 or 4 channels first"),
        ((2, 6, 8, 3), "none", "an array of shape (6, 8, 3) has more axes than input_data_format 'none' allows"),
    ],
)
def test_arrays_that_do_not_fit_the_format_are_refused(shape, input_data_format, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        same_size()(np.zeros(shape, np.uint8), input_data_format=input_data_format)
