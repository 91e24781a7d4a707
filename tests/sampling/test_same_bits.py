"""The same image, bit for bit, for any batch, decoder, number of threads and cache state."""

import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import naive_ids
from imagegpt import ImageGPTPipeline
from imagegpt.sampling import ExecutionPlan, Sampler, SamplingRules
from imagegpt.sampling.weight_formats import PrecisionOption
from naive import RULES, prompts_of, seeds_of, varied_model

PRECISIONS: list[PrecisionOption] = ["float32", "bfloat16", "int8"]
ALL_SHAPES = [*itertools.product((1, 2, 3, 8), (1, 2, 4, 7, 16)), (32, 1)]  # images, positions
SHAPES = [(1, 1), (1, 7), (2, 4), (3, 16), (8, 2), (32, 1)]


@pytest.fixture(params=[1, 2])
def num_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits():
    return ImageGPTPipeline.from_pretrained("digits", device="cpu").model


def logits_of(model, precision, num_images, num_fed, ids):
    step = ExecutionPlan.choose(model, precision=precision, backend="cpp").make_backend(num_images, ids.shape[1])
    for row in range(num_images):
        step.admit(row, torch.empty(0, dtype=torch.int64))
    parts = torch.arange(ids.shape[1]).split(num_fed)
    return torch.cat([step.step(ids[:num_images, p], p.expand(num_images, -1), range(num_images), 0) for p in parts], 1)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("variant", ["plain", "heads pruned"])
@pytest.mark.parametrize("shapes", [SHAPES, pytest.param(ALL_SHAPES, marks=pytest.mark.slow)], ids=["some", "all"])
def test_logits(variant, precision, num_threads, shapes):
    model = varied_model(variant, num_pixels=48, width=192)  # heads of 48
    ids = torch.stack(prompts_of([48] * 32))
    with torch.inference_mode():
        expected = logits_of(model, precision, 1, 48, ids)
        for num_images, num_fed in shapes:
            logits = logits_of(model, precision, num_images, num_fed, ids)
            assert torch.equal(logits[0], expected[0]), (num_images, num_fed)
            if num_images == 8:
                assert torch.equal(logits[7], logits_of(model, precision, 8, 1, ids)[7])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rules", RULES, ids=str)
def test_images_of_the_bundled_model(digits, rules, precision):
    sampler, seeds = Sampler(digits, precision=precision), seeds_of(60)
    images = sampler.generate(seeds=seeds, rules=rules)
    parallel = Sampler(digits, precision=precision, decoder="parallel")
    assert torch.equal(parallel.generate(seeds=seeds, rules=rules), images)
    for start, size in ((0, 1), (7, 3), (20, 32)):
        part = slice(start, start + size)
        assert torch.equal(sampler.generate(seeds=seeds[part], rules=rules), images[part])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_prompts_of_all_lengths_shared_and_alone(precision):
    """Each prompt is prefilled by itself, so its keys and values are the same for all images that share it."""
    model = varied_model(num_pixels=100)
    sampler = Sampler(model, precision=precision)
    prompts = prompts_of([0, 1, 63, 64, 65, 99, 100, 40])
    prompts += [prompts[4].clone(), prompts[7].clone(), prompts[4].clone()]
    together = sampler.generate(prompts, seeds=seeds_of(11))
    for image, prompt in enumerate(prompts):
        alone = sampler.generate([prompt], seeds=seeds_of(11)[image : image + 1])
        assert torch.equal(alone[0], together[image])


@pytest.mark.parametrize("width", [64, 192])  # head widths of 16, which uses several partial sums, and 48
@pytest.mark.parametrize("precision", PRECISIONS)
def test_prefilling_a_prompt_equals_stepping_through_it(precision, width):
    model = varied_model(num_pixels=90, width=width)
    ids = torch.stack(prompts_of([90]))
    ids[:, 0] = model.config.sos_token_id
    plan = ExecutionPlan.choose(model, precision=precision, backend="cpp")
    with torch.inference_mode():
        expected = logits_of(model, precision, 1, 1, ids)[0]
        for length in (1, 2, 3, 4, 5, 63, 66, 67, 89):
            step = plan.make_backend(1, 90)
            step.admit(0, ids[0, 1 : length + 1])
            for position in range(length, 90):
                logits = step.step(ids[:1, [position]], torch.tensor([[position]]), [0], 0)
                assert torch.equal(logits[0, 0], expected[position]), (length, position)


@pytest.mark.parametrize("decoder", ["sequential", "parallel"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_continuous_batching(precision, decoder):
    """An image does not change with the images that are admitted and released while it is sampled."""
    model = varied_model(num_pixels=60)
    plan = ExecutionPlan.choose(model, precision=precision, decoder=decoder)
    wanted = list(zip(prompts_of([5, 30, 0, 59, 7, 44, 2, 2, 31]), seeds_of(9), [*RULES, *RULES[:4]], strict=True))
    session, waiting, active, images = plan.open_session(3), list(enumerate(wanted)), {}, {}
    while waiting or active:
        while waiting and len(active) < 3:
            image, request = waiting.pop(0)
            active[session.admit(*request)] = image
        session.step()
        for row in set(active) - set(session.unfinished()):
            images[active.pop(row)] = session.pixels(row).clone()
            session.release(row)
    sampler = Sampler(model, precision=precision)
    for image, (prompt, seed, rules) in enumerate(wanted):
        assert torch.equal(images[image], sampler.generate([prompt], seeds=[seed], rules=rules)[0])


SCRIPT = """
import hashlib, torch
torch.set_num_threads({threads})
from imagegpt import ImageGPTPipeline
for precision in ("float32", "bfloat16", "int8"):
    pipe = ImageGPTPipeline.from_pretrained("digits", precision=precision, device="cpu")
    if {used}:
        pipe.sampler.generate(seeds=[77, 78, 79], num_pixels=9)
    print(hashlib.sha256(pipe.sampler.generate(seeds=range(5)).numpy().tobytes()).hexdigest())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("threads", "used"), [(2, True), (1, False)])
def test_cold_and_warm_kernel_caches(threads, used, tmp_path, digits):
    expected = [
        hashlib.sha256(Sampler(digits, precision=one).generate(seeds=range(5)).numpy().tobytes()).hexdigest()
        for one in PRECISIONS
    ]
    for _ in range(2):  # the second time with compiled libraries
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT.format(threads=threads, used=used)],
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == expected
        assert len(list(Path(tmp_path).glob("imagegpt/kernels/step-*.so"))) == 3


@pytest.mark.parametrize("decoder", ["sequential", "parallel"])
@pytest.mark.parametrize(
    ("name", "num_images"), [("digits", 300), ("cifar10", 2), pytest.param("cifar10", 40, marks=pytest.mark.slow)]
)
def test_images_equal_the_naive_loop(name, num_images, decoder):
    """The naive loop runs the whole prefix for every pixel, see `write_naive_ids.py`."""
    model, naive = naive_ids.load_bundled(name), naive_ids.read(name)
    assert naive_ids.hash_weights(model) == naive.weights_sha256, (
        f"the bundled {name} has changed: run tests/sampling/write_naive_ids.py"
    )
    sampler = Sampler(model, precision="float32", decoder=decoder, backend="cpp")
    for rules in dict.fromkeys(naive.rules[:num_images]):
        alike = [image for image in range(num_images) if naive.rules[image] == rules]
        images = sampler.generate(seeds=[naive.seeds[image] for image in alike], rules=rules)
        assert torch.equal(images, naive.ids[alike]), rules


def test_greedy_images_do_not_depend_on_the_seed(digits):
    greedy = Sampler(digits).generate(seeds=[1, 2], rules=SamplingRules(temperature=0))
    assert torch.equal(greedy[0], greedy[1])
