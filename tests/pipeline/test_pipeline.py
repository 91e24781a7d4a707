"""The pipeline: which image a seed gives, prompts, masks, and invalid arguments."""

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
from imagegpt.sampling import Sampler, SamplingRules, image_seed


def build(palette, size=4, **overrides):
    fields = {"n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.5}
    config = ImageGPTConfig(vocab_size=palette.num_colors + 1, **{**fields, **overrides})
    return ImageGPTPipeline(ImageGPTForCausalImageModeling(config), ImageGPTImageProcessor(palette, size=size))


@pytest.fixture
def pipe():
    return build(ColorPalette.grey(10))


def same(left, right):
    return len(left) == len(right) and all(a == b for a, b in zip(left, right, strict=True))


def pictures(num):
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for _ in range(num)]


def test_image_k_depends_on_seed_and_k_alone(pipe):
    eight = pipe.sample(8, seed=5)
    assert same(pipe.sample(3, seed=5), eight[:3])
    assert same(pipe.sample(8, seed=5, batch_size=1), eight)
    assert same(pipe.sample(8, seed=5, batch_size=3), eight)
    assert not same(pipe.sample(8, seed=6), eight)
    assert len({image.tobytes() for image in eight}) == 8


def test_sample_equals_the_sampler(pipe):
    options = {"temperature": 0.8, "top_k": 4, "top_p": 0.9, "min_p": 0.2}
    ids = Sampler(pipe.model).generate(seeds=[image_seed(1, 0), image_seed(1, 1)], rules=SamplingRules(**options))
    assert same(pipe.sample(2, seed=1, **options), pipe.processor.decode(ids))


@pytest.mark.parametrize("rule", [{"temperature": 3.0}, {"top_k": 2}, {"top_p": 0.3}, {"min_p": 0.5}])
def test_each_rule_reaches_the_sampler(pipe, monkeypatch, rule):
    seen = []
    generate = Sampler.generate
    monkeypatch.setattr(
        Sampler, "generate", lambda self, *a, rules, **kw: seen.append(rules) or generate(self, *a, rules=rules, **kw)
    )
    pipe.sample(1, **rule)
    pipe.complete(pictures(1), num=1, **rule)
    pipe.complete_ids(torch.zeros(1, 3, dtype=torch.int64), num=1, **rule)
    assert seen == [SamplingRules(**rule)] * 3


def test_completion_j_depends_on_image_seed_and_j_alone(pipe):
    first, second = pictures(2)
    both = pipe.complete([first, second], num=3, seed=2)
    assert [len(several) for several in both] == [3, 3]
    assert same(pipe.complete(second, num=3, seed=2)[0], both[1])
    assert same(pipe.complete([second, first], num=3, seed=2, batch_size=2)[0], both[1])
    assert same(pipe.complete([first], num=1, seed=2)[0], both[0][:1])


@pytest.mark.parametrize(("keep", "num_kept"), [(0, 0), (0.1, 2), (0.5, 8), (0.53, 8), (0.9, 14), (0.96, 15)])
def test_completions_keep_the_prompt(pipe, keep, num_kept):
    assert pipe.prompt_length(keep) == num_kept
    (image,) = pictures(1)
    (original,) = pipe.quantize([image])
    for completion in pipe.complete(image, keep=keep, num=4)[0]:
        assert completion.size == (4, 4)
        assert np.array_equal(np.asarray(completion).ravel()[:num_kept], np.asarray(original).ravel()[:num_kept])


def first(num_kept, height=4, width=4, factor=1):
    """A mask that keeps the first pixels."""
    kept = (np.arange(height * width) < num_kept).reshape(height, width)
    return kept.repeat(factor, axis=0).repeat(factor, axis=1)


@pytest.mark.parametrize(("rows", "num_kept"), [(0, 0), (1, 4), (3, 12)])
def test_rows_as_prompt(pipe, rows, num_kept):
    assert pipe.prompt_length(rows=rows) == num_kept
    (image,) = pictures(1)
    assert same(pipe.complete(image, rows=rows, num=2)[0], pipe.complete(image, keep=num_kept / 16, num=2)[0])


def test_rows_and_columns_of_wide_images():
    wide = build(ColorPalette.grey(10), size=(4, 6), n_positions=24)
    assert wide.prompt_length(rows=3) == 18
    assert wide.prompt_length(mask=first(13, 4, 6, factor=3)) == 13
    hole = first(13, 4, 6)
    hole[3, 5] = True
    with pytest.raises(ValueError, match="row 3, column 5 "):
        wide.prompt_length(mask=hole)


@pytest.mark.parametrize("num_kept", [0, 1, 4, 7, 15])
@pytest.mark.parametrize("factor", [1, 2, 7])
def test_a_mask_as_prompt(pipe, tmp_path, num_kept, factor):
    kept = first(num_kept, factor=factor)
    Image.fromarray(kept).save(tmp_path / "mask.png")
    kinds = [kept, kept.astype(np.int64), kept.astype(np.float32), torch.from_numpy(kept), Image.fromarray(kept)]
    kinds += [Image.fromarray(kept * np.uint8(255)).convert("RGBA"), tmp_path / "mask.png", str(tmp_path / "mask.png")]
    assert [pipe.prompt_length(mask=mask) for mask in kinds] == [num_kept] * len(kinds)


def test_a_mask_keeps_every_colour_but_black(pipe):
    mask = Image.new("RGB", (4, 4))
    mask.putpixel((0, 0), (0, 0, 1))
    mask.putpixel((1, 0), (200, 0, 0))
    assert pipe.prompt_length(mask=mask) == 2


def test_half_of_the_pixels_are_kept_by_default(pipe):
    assert pipe.prompt_length() == 8
    (image,) = pictures(1)
    assert same(pipe.complete(image, num=2)[0], pipe.complete(image, keep=0.5, num=2)[0])
    assert same(pipe.complete(image, mask=first(5), num=2)[0], pipe.complete(image, keep=5 / 16, num=2)[0])


def test_complete_ids_equals_complete(pipe):
    images = pictures(2)
    by_ids = pipe.complete_ids(pipe.encode(images)[:, :5], num=3, seed=4)
    assert all(map(same, by_ids, pipe.complete(images, mask=first(5), num=3, seed=4)))
    assert same(pipe.complete_ids(torch.empty(1, 0, dtype=torch.int64), num=3, seed=4)[0], pipe.sample(3, seed=4))


def holed(row, column, factor=1):
    """A mask that keeps one row, and a pixel behind it."""
    mask = first(4)
    mask[row, column] = True
    return mask.repeat(factor, axis=0).repeat(factor, axis=1)


def test_image_modes_of_colour_and_grey_palettes():
    generator = np.random.default_rng(1)
    colours = ColorPalette.from_rgb(generator.integers(0, 256, (12, 3)))
    (image,) = build(colours).sample()
    assert image.mode == "RGB"
    assert {tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3)} <= {tuple(color) for color in colours.rgb}
    assert build(ColorPalette.grey(10)).sample()[0].mode == "L"


def test_progress_counts_every_pixel_once(pipe):
    seen = []
    pipe.complete(pictures(2), keep=0.5, num=3, batch_size=4, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == [4 * i for i in range(1, 9)] + [32 + 2 * i for i in range(1, 9)]
    assert {total for _, total in seen} == {48}


def test_save_and_load_round_trip(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "folder")
    loaded = ImageGPTPipeline.from_pretrained(tmp_path / "folder", device="cpu")
    assert same(loaded.sample(4), pipe.sample(4))
    assert loaded.model.dtype == torch.float32
    rounded = ImageGPTPipeline.from_pretrained(str(tmp_path / "folder"), dtype="bfloat16")
    assert rounded.sampler.plan.precision == "bfloat16"
    rounded = ImageGPTPipeline.from_pretrained(tmp_path / "folder", precision="int8")
    with pytest.raises(ValueError, match=r"rounded to int8 for sampling.*load the pipeline without a precision"):
        rounded.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_default_batch_size_follows_from_memory(pipe):
    assert pipe.sampler.plan.batch_size == 256
    with torch.device("meta"):
        large = ImageGPTForCausalImageModeling(ImageGPTConfig.from_size("small"))
    image = 100_663_296 + 1024 * (512 * 4 + 8)  # with the noise and the ids
    assert Sampler(large).plan.batch_size == (1 << 30) // image == 10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.sample(0), "num is 0: it must be an integer from 1 to"),
        (lambda p: p.sample(1.5), "num is 1.5: it must be an integer"),
        (lambda p: p.sample(2, batch_size=0), "batch_size is 0: it must be an integer from 1 to"),
        (lambda p: p.sample(2, seed=-1), "seed is -1: it must be an integer from 0"),
        (lambda p: p.sample(2, temperature=-1), "temperature is -1: it must be"),
        (lambda p: p.complete(pictures(1), num=0), "num is 0"),
        (
            lambda p: p.complete(pictures(1), keep=1),
            "keep is 1: it must be a number of at least 0 and less",
        ),
        (lambda p: p.complete(pictures(1), keep=-0.1), "keep is -0.1: it must be a number"),
        (lambda p: p.complete(pictures(1), keep=float("nan")), "keep is nan: it must be a number"),
        (lambda p: p.complete(pictures(1), keep=0.99), "keep is 0.99, which is all of 16 pixels: leave at least one"),
        (lambda p: p.complete([]), "the list of images is empty"),
        (lambda p: p.complete_ids(torch.zeros(9).long()), r"the ids have the shape \(9,\): give \(images, pixels\)"),
        (lambda p: p.complete_ids(torch.zeros(1, 17).long()), "the prompts have 17 pixels, but the images have only"),
        (lambda p: p.complete_ids(torch.full((1, 3), 11)), "the prompts contain 11: this model has colours 0 to 9"),
        (lambda p: p.sample(min_p=1.5), "min_p is 1.5: it must be a number from 0 to 1"),
        (lambda p: p.complete(pictures(1), keep=0.5, rows=2), "keep and rows were given: give only one of them"),
        (lambda p: p.complete(pictures(1), keep=0.0, mask=first(1)), "keep and mask were given: give only one"),
        (lambda p: p.prompt_length(0.1, rows=0, mask=first(1)), "keep and rows and mask were given: give only one"),
        (lambda p: p.prompt_length(rows=4), "rows is 4: an image has 4, keep an integer from 0 to 3$"),
        (lambda p: p.prompt_length(rows=-1), "rows is -1: it must be an integer from 0"),
        (lambda p: p.prompt_length(rows=1.5), "rows is 1.5: it must be an integer"),
        (lambda p: p.prompt_length(rows=True), "rows is True: it must be an integer"),
        (
            lambda p: p.prompt_length(mask=first(16, factor=2)),
            "the mask keeps all of 16 pixels: leave at least one to complete$",
        ),
        (
            lambda p: p.prompt_length(mask=holed(1, 1)),
            r"the mask keeps the pixel at row 1, column 1 \(counted from 0\) but not all before it: this model samples",
        ),
        (lambda p: p.prompt_length(mask=holed(3, 2, factor=5)), "the mask keeps the pixel at row 3, column 2 "),
        (lambda p: p.prompt_length(mask=~first(4)), "the mask keeps the pixel at row 1, column 0 "),
        (
            lambda p: p.prompt_length(mask=np.zeros(4)),
            r"the mask cannot be used: an array of shape \(4,\) is not an image",
        ),
        (lambda p: p.prompt_length(mask=7), "the mask cannot be used: a int is not an image"),
        (
            lambda p: ImageGPTPipeline.from_pretrained("x", device="tpu9"),
            "there is no device 'tpu9' here: choose from cpu",
        ),
        (
            lambda p: ImageGPTPipeline.from_pretrained("x", dtype="int8"),
            "dtype is 'int8': choose one of float32, bfloat16",
        ),
        (lambda p: ImageGPTPipeline.from_pretrained("x", dtype=torch.int8), "dtype is torch.int8: choose one of"),
        (lambda p: ImageGPTPipeline.from_pretrained("x"), "there is no model 'x'"),
        (
            lambda p: ImageGPTPipeline(p.model, ImageGPTImageProcessor(ColorPalette.grey(9), size=4)),
            "the processor has 9 colours, the model 10",
        ),
        (
            lambda p: ImageGPTPipeline(p.model, ImageGPTImageProcessor(ColorPalette.grey(10), size=5)),
            "the processor makes images of 5 x 5 = 25 pixels, the model has 16 positions",
        ),
    ],
)
def test_invalid_arguments_are_one_sentence(pipe, call, message):
    with pytest.raises(ValueError, match=f"^{message}") as refused:
        call(pipe)
    assert "\n" not in str(refused.value)
    assert not str(refused.value).endswith(".")


def test_unknown_rules_are_refused(pipe):
    with pytest.raises(TypeError, match="top_q"):
        pipe.sample(1, top_q=3)
