"""Work too large for memory or disk is refused before it starts, with the amounts and what to do."""

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import cache_bytes, tiny_model
from imagegpt import ColorPalette, ImageGPTImageProcessor, ImageGPTPipeline
from imagegpt.common import memory
from imagegpt.data import palettes
from imagegpt.data.broken_images import MAX_BROKEN
from imagegpt.data.palettes import fit_palette
from imagegpt.data.sources.base import Example, ImageSource
from imagegpt.figures.animations import check_gif_size
from imagegpt.figures.grids import completion_grid, completion_grid_size, sample_grid, sample_grid_size
from imagegpt.jobs.encode import encode
from imagegpt.model.losses import autoregressive_loss
from imagegpt.sampling import Sampler, SamplingRules
from imagegpt.sampling.packed_linear import stored_bytes
from imagegpt.training.distributed import DistributedContext
from imagegpt.training.lora import add_adapters
from imagegpt.training.memory_estimate import activation_bytes
from imagegpt.training.recipe_io import parse_recipe
from imagegpt.training.run import Run

SENTENCE = r"needs? at least [\d.,]+ [kMGTP]?B of {}, but only [\d.,]+ [kMGTP]?B are free: "
IN_MEMORY = SENTENCE.format("memory")


@pytest.fixture
def with_memory(monkeypatch):
    """A machine with so many bytes of free memory."""
    return lambda num: monkeypatch.setattr(memory, "available_memory", lambda: num)


@pytest.fixture
def pipe():
    return ImageGPTPipeline(tiny_model(), ImageGPTImageProcessor(ColorPalette.grey(16), size=4))


# --- What there is ---


def test_available_memory_of_this_machine():
    free = memory.available_memory()
    assert free is not None
    assert 1e7 < free < 1e14


def test_available_memory_is_the_minimum_of_machine_and_control_groups(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("4000000\n")
    (tmp_path / "memory.stat").write_text("anon 7\ninactive_file 300000\n")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    assert memory.available_memory() == 1_300_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_memory() > 1e7
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("2000\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("2500\n")
    (tmp_path / "memory" / "memory.stat").write_text("total_inactive_file 0\n")
    assert memory.available_memory() == 0


def test_check_memory_passes_if_free_memory_is_unknown(with_memory):
    with_memory(None)
    memory.check_memory("the world", 1e30, "think small")
    with_memory(10)
    memory.check_memory("little", 10, "think small")
    with pytest.raises(ValueError, match=r"^the world needs at least 1,000,000,000,000,000 PB of memory"):
        memory.check_memory("the world", 1e30, "think small")
    with pytest.raises(ValueError, match=r"^it needs at least 1\.23 kB of memory, but only 10 B are free: do$"):
        memory.check_memory("it", 1234, "do")


def test_check_disk_space_of_a_folder_that_does_not_exist_yet(tmp_path):
    memory.check_disk_space("it", 1, tmp_path / "not" / "yet", "do")
    with pytest.raises(ValueError, match=f"^it {SENTENCE.format(f'disk space at {tmp_path}')}do$"):
        memory.check_disk_space("it", 1e18, tmp_path / "not" / "yet", "do")


# --- Pictures ---


@pytest.mark.parametrize("num", [1, 2, 5, 9, 17])
@pytest.mark.parametrize("size", [(4, 4), (8, 32), (100, 70)])
def test_grid_sizes_match_the_drawn_grids(num, size):
    images = [Image.new("L", size)] * num
    assert sample_grid(images).size == sample_grid_size(num, size)
    for labels in (None, ["a", "b"]):
        drawn = completion_grid(images[:1] * 2, 1, [images] * 2, labels)
        assert drawn.size == completion_grid_size(2, num, size, labels is not None)


def test_grids_too_large_for_memory_are_refused(with_memory):
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


def test_too_many_images_are_refused_before_sampling(pipe, with_memory):
    with_memory(10**6)
    ids = torch.zeros(1, 4, dtype=torch.int64)
    for draw in (lambda: pipe.sample(10**8), lambda: pipe.complete_ids(ids, num=10**8)):
        with pytest.raises(ValueError, match=rf"^keeping 100,000,000 images {IN_MEMORY}ask for fewer, or write them"):
            draw()


def test_a_batch_too_large_is_refused_or_split(pipe, with_memory):
    seeds = range(40)
    expected = pipe.sampler.generate(seeds=seeds)
    image = pipe.sampler.plan.bytes_per_image
    with_memory(39 * image)
    message = rf"^sampling 40 images at once {IN_MEMORY}choose a smaller batch size, or set max_memory"
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
def test_measured_bytes_per_image_match_the_plan(precision, prompt):
    plan = Sampler(tiny_model(n_embd=64), precision=precision, backend="cpp").plan
    session = plan.open_session(6)
    for seed in range(6):
        session.admit(torch.full((prompt,), seed), seed, SamplingRules())  # prompts differ
    session.step()
    held = cache_bytes(session.backend) + session._noise.nbytes + session.tokens[:, 1:].nbytes
    assert plan.bytes_per_image == held / 6


# --- Palettes and encodings ---


class Large(ImageSource):
    """Twenty images of one colour each, made when they are read."""

    name, fingerprint, split, classes = "large", "x", None, None

    def __len__(self):
        return 20

    def _read(self, index):
        return Example(image=np.full((2, 2, 3), 10 * index, np.uint8), label=None, name="")


def test_fitting_a_palette_takes_bounded_memory(monkeypatch):
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
    assert sum(one.nbytes for one in fitted.examples) <= 3 * palettes._MAX_EXAMPLE_PIXELS


def test_encoding_checks_memory_and_disk_space(tmp_path, with_memory, monkeypatch):
    processor = ImageGPTImageProcessor(ColorPalette.grey(17), size=64)
    with_memory(10**6)
    message = rf"^encoding 360 images of 4,096 pixels at a time in 1 processes {IN_MEMORY}choose fewer processes"
    with pytest.raises(ValueError, match=message):
        encode("digits", tmp_path / "ids", processor, split="test")
    with_memory(10**9)
    with pytest.raises(ValueError, match=r"in 20 processes needs at least 3 GB of memory"):
        encode("digits", tmp_path / "ids", processor, split="test", num_workers=20, shard_size=10)
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(ValueError, match=r"^encoding 360 images of 4,096 pixels needs at least 2\.95 MB of disk"):
        encode("digits", tmp_path / "ids", processor, split="test")
    assert list(tmp_path.iterdir()) == []
    assert MAX_BROKEN == 0.05


# --- Training ---


def run(tmp_path, **sections):
    recipe = {
        "model": {"n_layer": 2, "n_embd": 32, "n_head": 2},
        "data": {"train": "digits"},
        "training": {"num_steps": 2, "warmup_steps": 0, "batch_size": 512},
    }
    recipe = {name: {**recipe[name], **sections.get(name, {})} for name in recipe}
    return Run(parse_recipe(recipe), tmp_path / "model", DistributedContext(torch.device("cpu")))


def test_training_too_large_for_memory_names_what_to_change(tmp_path, with_memory):
    with_memory(20 * 10**6)
    with pytest.raises(
        ValueError, match=rf"^training with 512 images at a time .*{IN_MEMORY}.*training.micro_batch_size"
    ):
        run(tmp_path)
    with pytest.raises(ValueError, match=rf"^a model of [\d,]+ parameters {IN_MEMORY}choose fewer blocks"):
        run(tmp_path, model={"n_layer": 100, "n_embd": 1024})
    with pytest.raises(ValueError, match=rf"^data.num_workers = 50 {IN_MEMORY}choose fewer"):
        run(tmp_path, data={"num_workers": 50})
    assert list(tmp_path.iterdir()) == []
    run(tmp_path, training={"micro_batch_size": 32})


# transformers 5.23 renamed the method; 5.17, which we support too, has this name only.
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("attention", ["kernels", "sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activation_estimate_is_a_lower_bound(attention, checkpointing, with_training_kernels):
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


def test_lora_weights_are_not_larger_than_the_layers_they_adapt():
    model = tiny_model(n_embd=32)
    with pytest.raises(ValueError, match=r"^model.lora_rank is 33 and the model is 32 wide: .* choose 32 or less$"):
        add_adapters(model.transformer, 33)
