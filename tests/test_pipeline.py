"""The pipeline's promises: which image a seed stands for, what is kept, and what is refused."""

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


def build(palette, **overrides):
    fields = {"n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.5}
    config = ImageGPTConfig(vocab_size=palette.num_colors + 1, **{**fields, **overrides})
    return ImageGPTPipeline(ImageGPTForCausalImageModeling(config), ImageGPTImageProcessor(palette, size=4))


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


def test_samples_are_what_the_sampler_draws(pipe):
    rules = SamplingRules(temperature=0.8, top_k=4, top_p=0.9)
    ids = Sampler(pipe.model).generate(seeds=[image_seed(1, 0), image_seed(1, 1)], rules=rules)
    assert same(pipe.sample(2, seed=1, temperature=0.8, top_k=4, top_p=0.9), pipe.processor.decode(ids))


def test_completion_j_depends_on_image_seed_and_j_alone(pipe):
    first, second = pictures(2)
    both = pipe.complete([first, second], num=3, seed=2)
    assert [len(several) for several in both] == [3, 3]
    assert same(pipe.complete(second, num=3, seed=2)[0], both[1])
    assert same(pipe.complete([second, first], num=3, seed=2, batch_size=2)[0], both[1])
    assert same(pipe.complete([first], num=1, seed=2)[0], both[0][:1])


@pytest.mark.parametrize(("keep", "num_kept"), [(0, 0), (0.1, 2), (0.5, 8), (0.53, 8), (0.9, 14), (0.96, 15)])
def test_completions_keep_the_first_pixels(pipe, keep, num_kept):
    assert pipe.num_kept_pixels(keep) == num_kept
    (image,) = pictures(1)
    (original,) = pipe.reduce([image])
    for completion in pipe.complete(image, keep=keep, num=4)[0]:
        assert completion.size == (4, 4)
        assert np.array_equal(np.asarray(completion).ravel()[:num_kept], np.asarray(original).ravel()[:num_kept])


def test_colour_and_grey_palettes_give_their_own_modes():
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


def test_saving_and_loading_changes_nothing(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "folder")
    loaded = ImageGPTPipeline.from_pretrained(tmp_path / "folder", device="cpu")
    assert same(loaded.sample(4), pipe.sample(4))
    assert loaded.model.dtype == torch.float32
    assert ImageGPTPipeline.from_pretrained(str(tmp_path / "folder"), dtype="bfloat16").model.dtype == torch.bfloat16


def test_batches_are_chosen_by_the_memory_of_keys_and_values(pipe):
    assert pipe._default_batch_size() == 256
    with torch.device("meta"):
        large = ImageGPTForCausalImageModeling(ImageGPTConfig.from_size("small"))
    pipe.model = large
    assert pipe._default_batch_size() == (1 << 30) // 100_663_296 == 10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.sample(0), "num is 0: it must be a whole number of at least 1"),
        (lambda p: p.sample(1.5), "num is 1.5: it must be a whole number"),
        (lambda p: p.sample(2, batch_size=0), "batch_size is 0: it must be a whole number of at least 1"),
        (lambda p: p.sample(2, seed=-1), "seed is -1: it must be a whole number from 0"),
        (lambda p: p.sample(2, temperature=-1), "temperature is -1: it must be"),
        (lambda p: p.complete(pictures(1), num=0), "num is 0"),
        (
            lambda p: p.complete(pictures(1), keep=1),
            "keep is 1: the share of the pixels to keep must be at least 0 and",
        ),
        (lambda p: p.complete(pictures(1), keep=-0.1), "keep is -0.1: the share"),
        (lambda p: p.complete(pictures(1), keep=float("nan")), "keep is nan: the share"),
        (lambda p: p.complete(pictures(1), keep=0.99), "keep is 0.99, which is all of 16 pixels: leave at least one"),
        (lambda p: p.complete([]), "the list of images is empty"),
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
def test_what_makes_no_sense_is_refused_in_one_sentence(pipe, call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call(pipe)
