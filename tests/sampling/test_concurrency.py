"""One sampler used by threads, an event loop and forked processes: the images do not change."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from imagegpt import ImageGPTPipeline
from imagegpt.sampling import Sampler
from naive import prompts_of, seeds_of, varied_model


@pytest.mark.parametrize("decoder", ["sequential", "parallel"])
@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_eight_threads_on_a_fresh_sampler(backend, decoder):
    """Regression: threads raced while the first use packed the weights."""
    model, seeds = varied_model(num_pixels=48), seeds_of(16)
    prompts = prompts_of([0, 5, 20, 47] * 4)
    alone = Sampler(model, backend=backend)
    expected = [alone.generate([prompt], seeds=[seed])[0] for prompt, seed in zip(prompts, seeds, strict=True)]
    fresh = Sampler(model, backend=backend, decoder=decoder)
    with ThreadPoolExecutor(8) as pool:
        images = list(
            pool.map(lambda pair: fresh.generate([pair[0]], seeds=[pair[1]])[0], zip(prompts, seeds, strict=True))
        )
    assert all(map(torch.equal, images, expected))


def test_an_event_loop_with_threads():
    pipe = ImageGPTPipeline.from_pretrained("digits", device="cpu")
    expected = [image.tobytes() for image in ImageGPTPipeline.from_pretrained("digits", device="cpu").sample(4, seed=3)]

    async def ask():
        return await asyncio.gather(*(asyncio.to_thread(pipe.sample, 4, seed=3) for _ in range(4)))

    for images in asyncio.run(ask()):
        assert [image.tobytes() for image in images] == expected


FORK = """
import hashlib, multiprocessing, torch
torch.set_num_threads(2)
from imagegpt import ImageGPTPipeline
pipe = ImageGPTPipeline.from_pretrained("digits", device="cpu")
def sample(seed):
    images = pipe.sampler.generate(torch.zeros(1, 9, dtype=torch.int64), seeds=[seed])
    return hashlib.sha256(images.numpy().tobytes()).hexdigest()
def in_workers(seeds):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map_async(sample, seeds).get(timeout=100)
seeds = list(range(6))
before = in_workers(seeds)
here = [sample(seed) for seed in seeds]
pipe.sampler.generate(seeds=range(40), num_pixels=20)  # enough for two threads
torch.rand(400, 400) @ torch.rand(400, 400)
after = in_workers(seeds)
print(before == here == after, len(set(here)))
"""


def test_workers_forked_before_and_after_the_parent_sampled(forkserver):
    """Regression: workers forked afterwards hung, waiting for OpenMP threads that a fork does not copy."""
    done = forkserver.run(["-c", FORK])
    assert done.stdout.split() == ["True", "6"], done.stderr[-2000:]
