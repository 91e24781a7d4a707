"""What does not fit the machine is refused before it begins, in one sentence that says how much and what to do."""

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import tiny_model
from imagegpt import ColorPalette, ImageGPTImageProcessor, ImageGPTPipeline
from imagegpt.common import memory
from imagegpt.data import palettes
from imagegpt.data.palettes import fit_palette
from imagegpt.figures.animations import check_gif_size
from imagegpt.figures.grids import completion_grid, completion_grid_size, sample_grid, sample_grid_size
from imagegpt.jobs import encode
from imagegpt.jobs.encode import encode_images
from imagegpt.sampling import Sampler, SamplingRules
from imagegpt.sampling.packed_linear import stored_bytes
from imagegpt.training.distributed import World
from imagegpt.training.lora import add_adapters
from imagegpt.training.memory_estimate import activation_bytes
from imagegpt.training.objectives import autoregressive_loss
from imagegpt.training.recipe_io import parse_recipe
from imagegpt.training.run import Run

SENTENCE = r"would take at least [\d.,]+ [kMGTP]?B of {}, of which [\d.,]+ [kMGTP]?B are free: "
IN_MEMORY = SENTENCE.format("memory")


@pytest.fixture
def with_memory(monkeypatch):
    """A machine with so many bytes of free memory."""
    return lambda num: monkeypatch.setattr(memory, "available_bytes", lambda: num)


@pytest.fixture
def pipe():
    return ImageGPTPipeline(tiny_model(), ImageGPTImageProcessor(ColorPalette.grey(16), size=4))


# --- What there is ---


def test_this_machine_says_what_is_free():
    free = memory.available_bytes()
    assert free is not None
    assert 1e7 < free < 1e14


def test_the_least_of_machine_and_control_groups_counts(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("4000000\n")
    (tmp_path / "memory.stat").write_text("anon 7\ninactive_file 300000\n")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    assert memory.available_bytes() == 1_300_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_bytes() > 1e7
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("2000\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("2500\n")
    (tmp_path / "memory" / "memory.stat").write_text("total_inactive_file 0\n")
    assert memory.available_bytes() == 0


def test_where_nobody_can_tell_nothing_is_refused(with_memory):
    with_memory(None)
    memory.check_memory("the world", 1e30, "think small")
    with_memory(10)
    memory.check_memory("little", 10, "think small")
    with pytest.raises(ValueError, match=r"^the world would take at least 1,000,000,000,000,000 PB of memory"):
        memory.check_memory("the world", 1e30, "think small")
    with pytest.raises(ValueError, match=r"^it would take at least 1\.23 kB of memory, of which 10 B are free: do$"):
        memory.check_memory("it", 1234, "do")


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path):
    memory.check_disk("it", 1, tmp_path / "not" / "yet", "do")
    with pytest.raises(ValueError, match=f"^it {SENTENCE.format(f'disk space at {tmp_path}')}do$"):
        memory.check_disk("it", 1e18, tmp_path / "not" / "yet", "do")


# --- Pictures ---


@pytest.mark.parametrize("num", [1, 2, 5, 9, 17])
@pytest.mark.parametrize("size", [(4, 4), (8, 32), (100, 70)])
def test_the_size_of_a_picture_is_known_before_it_is_drawn(num, size):
    images = [Image.new("L", size)] * num
    assert sample_grid(images).size == sample_grid_size(num, size)
    assert sample_grid(images, 3).size == sample_grid_size(num, size, 3)
    for labels in (None, ["a", "b"]):
        drawn = completion_grid(images[:1] * 2, 1, [images] * 2, labels)
        assert drawn.size == completion_grid_size(2, num, size, labels is not None)


def test_pictures_too_large_are_refused(with_memory):
    with_memory(10**6)
    assert sample_grid_size(9, (4, 4))
    for grid in (lambda: sample_grid_size(10**4, (4, 4)), lambda: completion_grid_size(100, 100, (4, 4), True)):
        with pytest.raises(ValueError, match=rf"^a picture of [\d,]+ x [\d,]+ pixels {IN_MEMORY}ask for fewer images"):
            grid()
    with pytest.raises(ValueError, match="a picture of"):
        sample_grid([Image.new("L", (4, 4))] * 100)
    check_gif_size((100, 100), (8, 8))
    with pytest.raises(ValueError, match=rf"^an animation of 65 frames of 200 x 200 pixels {IN_MEMORY}leave out --gif"):
        check_gif_size((200, 200), (8, 8))


# --- Sampling ---


def test_images_that_nobody_could_keep_are_refused_before_their_seeds_are_made(pipe, with_memory):
    with_memory(10**6)
    ids = torch.zeros(1, 4, dtype=torch.int64)
    for draw in (lambda: pipe.sample(10**8), lambda: pipe.complete_ids(ids, num=10**8)):
        with pytest.raises(ValueError, match=rf"^keeping 100,000,000 images {IN_MEMORY}ask for fewer, or write them"):
            draw()


def test_a_batch_fits_or_is_refused_or_is_drawn_in_turns(pipe, with_memory):
    seeds = range(40)
    expected = pipe.sampler.generate(seeds=seeds)
    image = pipe.sampler.plan.bytes_per_image
    with_memory(39 * image)
    message = rf"^drawing 40 images at once {IN_MEMORY}choose a smaller batch size, or set max_memory"
    with pytest.raises(ValueError, match=message):
        pipe.sampler.generate(seeds=seeds)
    with pytest.raises(ValueError, match=message):
        pipe.sample(64, batch_size=40)
    assert len(pipe.sample(64, batch_size=20)) == 64
    in_turns = Sampler(pipe.model, max_memory=stored_bytes(pipe.model) + 10 * image)
    assert in_turns.plan.batch_size == 10
    assert torch.equal(in_turns.generate(seeds=seeds), expected)


@pytest.mark.parametrize("prompt", [0, 5])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_an_image_takes_the_bytes_that_are_made_for_it(precision, prompt):
    plan = Sampler(tiny_model(n_embd=64), precision=precision, backend="cpp").plan
    session = plan.open(6)
    for seed in range(6):
        session.admit(torch.full((prompt,), seed), seed, SamplingRules())  # each with a prompt of its own
    session.step()
    held = session.backend.cache_bytes + session._noise.nbytes + session.tokens[:, 1:].nbytes
    assert plan.bytes_per_image == held / 6


# --- Palettes and encodings ---


class Large:
    """Twenty pictures of one colour each, made when they are read."""

    name, fingerprint, split, classes = "large", "x", None, None

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return type("Example", (), {"name": "", "image": np.full((2, 2, 3), 10 * index, np.uint8)})


def test_a_palette_is_fitted_in_bounded_memory_whatever_the_size(monkeypatch):
    """Of pictures of 5,000 pixels a side 256 were held at once (19 GB), and 10,000 for the report."""
    held = []
    fit = ColorPalette.fit.__func__
    monkeypatch.setattr(
        ColorPalette,
        "fit",
        classmethod(lambda cls, blocks, *a, **k: fit(cls, (held.append(one.nbytes) or one for one in blocks), *a, **k)),
    )
    fitted = fit_palette(Large(), 20, ImageGPTImageProcessor(size=1024))
    assert fitted.num_images == fitted.palette.num_colors == 20
    assert max(held) <= 3 * 256 * 64 * 64
    assert sum(one.nbytes for one in fitted.examples) <= 3 * palettes._REPORTED_PIXELS


def test_an_encoding_needs_memory_and_disk(tmp_path, with_memory, monkeypatch):
    processor = ImageGPTImageProcessor(ColorPalette.grey(17), size=64)
    with_memory(10**6)
    message = rf"^encoding 360 images of 4,096 pixels at a time in 1 processes {IN_MEMORY}choose fewer processes"
    with pytest.raises(ValueError, match=message):
        encode_images("digits", tmp_path / "ids", processor, split="test")
    with_memory(10**9)
    with pytest.raises(ValueError, match=r"in 20 processes would take at least 3 GB of memory"):
        encode_images("digits", tmp_path / "ids", processor, split="test", num_workers=20, shard_size=10)
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(ValueError, match=r"^encoding 360 images of 4,096 pixels would take at least 2\.95 MB of disk"):
        encode_images("digits", tmp_path / "ids", processor, split="test")
    assert list(tmp_path.iterdir()) == []
    assert encode.MAX_BROKEN == 0.05


# --- Training ---


def run(tmp_path, **sections):
    recipe = {
        "model": {"n_layer": 2, "n_embd": 32, "n_head": 2},
        "data": {"train": "digits"},
        "training": {"num_steps": 2, "warmup_steps": 0, "batch_size": 512},
    }
    recipe = {name: {**recipe[name], **sections.get(name, {})} for name in recipe}
    return Run(parse_recipe(recipe), tmp_path / "model", World(torch.device("cpu")))


def test_training_that_does_not_fit_is_refused_and_names_what_to_change(tmp_path, with_memory):
    with_memory(20 * 10**6)
    with pytest.raises(ValueError, match=rf"^training with 512 images at a time .*{IN_MEMORY}.*training.micro_batch"):
        run(tmp_path)
    with pytest.raises(ValueError, match=rf"^a model of [\d,]+ parameters {IN_MEMORY}choose fewer blocks"):
        run(tmp_path, model={"n_layer": 100, "n_embd": 1024})
    with pytest.raises(ValueError, match=rf"^data.num_workers = 50 {IN_MEMORY}choose fewer"):
        run(tmp_path, data={"num_workers": 50})
    assert list(tmp_path.iterdir()) == []
    run(tmp_path, training={"micro_batch": 32})


# transformers 5.23 renamed the method; 5.17, which we support too, has this name only.
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("attention", ["kernels", "sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_more_is_asked_for_than_the_backward_pass_keeps(attention, checkpointing, with_training_kernels):
    """What is refused would not have worked: the estimate is below what torch was seen to keep."""
    model = tiny_model(n_embd=32, n_layer=4, n_positions=64).train()
    model.set_attn_implementation(attention)
    if checkpointing:
        model.gradient_checkpointing_enable()
    ids, kept = torch.zeros(3, 64, dtype=torch.int64), {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = autoregressive_loss(model, ids)
    estimate = activation_bytes(model.config, 3, bytes_per_number=4, checkpointing=checkpointing)
    assert estimate <= sum(kept.values()) < 20 * estimate
    loss.backward()


def test_adapters_are_not_larger_than_what_they_stand_beside():
    model = tiny_model(n_embd=32)
    with pytest.raises(ValueError, match=r"^model.lora_rank is 33 and the model is 32 wide: .* choose 32 or less$"):
        add_adapters(model.transformer, 33)
