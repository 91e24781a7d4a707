"""Compiled blocks draw the naive images, and each graph is made once.

A graph takes 8 to 20 s to compile. The tests that always run make two, in a folder of the session; `slow` makes others.
"""

import pytest
import torch

from imagegpt.sampling import Sampler, SamplingRules, compilation
from imagegpt.sampling.cache import StaticCache
from imagegpt.sampling.compilation import Compiler
from imagegpt.sampling.decoder import Decoder
from imagegpt.sampling.projections import freeze
from naive import (
    NUM_PIXELS,
    RULES,
    VARIANTS,
    OneForAll,
    Runs,
    compiled,
    naive,
    prompts_of,
    seeds_of,
    varied_model,
)


@pytest.fixture(scope="module")
def model():
    return varied_model(num_pixels=NUM_PIXELS)


@pytest.mark.parametrize("num_pixels", [16, 64, NUM_PIXELS])
@pytest.mark.parametrize("rules", RULES, ids=str)
def test_uncompiled_images_are_the_naive_ones(num_pixels, rules):
    model = varied_model("scores scaled by layer", num_pixels, width={16: 16, 64: 64, NUM_PIXELS: 128}[num_pixels])
    prompts = prompts_of([0, num_pixels - 9, num_pixels - 1, num_pixels, num_pixels - 9])
    expected = naive(model, prompts, seeds_of(5), rules)
    for decoder in ("sequential", "parallel"):
        sampler = Sampler(model, compile=False, decoder=decoder)
        assert torch.equal(sampler.generate(prompts, seeds=seeds_of(5), rules=rules), expected)
        assert torch.equal(sampler.generate(prompts[:1], seeds=seeds_of(1), rules=rules), expected[:1])


def test_one_image_crosses_the_buckets_in_one_graph(model, shared_graphs):
    """All blocks, all lengths of the cache, all rules, the second image and the second sampler: one compilation."""
    sampler, expected = compiled(model), {}
    for rules in RULES:
        prompts = prompts_of([0 if rules == RULES[0] else 120])
        expected[rules] = naive(model, prompts, [5], rules)
        assert torch.equal(sampler.generate(prompts, seeds=[5], rules=rules), expected[rules])
        assert sampler._compiler.num_compilations == 1
    assert len(list(shared_graphs.glob("*.pt2"))) == 1
    second = compiled(model)
    assert torch.equal(second.generate(seeds=[5]), expected[RULES[0]])
    assert second._compiler.num_compilations == 0
    for known in (True, False):  # a graph that is there is used without being asked for
        sampler = Sampler(model, compile=known)
        assert torch.equal(sampler.generate(seeds=[5]), expected[RULES[0]])
        runners = sampler._known_graphs._runners
        assert bool(runners and all(runners.values())) == known


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_uncompiled_images_that_share_prompts_are_the_naive_ones(rules):
    model = varied_model("heads pruned", 80)
    for prompts in (prompts_of([70]) * 3, prompts_of([1]) * 2, [*prompts_of([75]) * 2, *prompts_of([75], seed=1) * 2]):
        expected = naive(model, prompts, seeds_of(len(prompts)), rules)
        for decoder in ("sequential", "parallel"):
            sampler = Sampler(model, compile=False, decoder=decoder)
            assert torch.equal(sampler.generate(prompts, seeds=seeds_of(len(prompts)), rules=rules), expected)


def test_batches_of_any_size_with_runs_of_any_length_share_a_graph(model, shared_graphs):
    """Prompts of all lengths, all rules."""
    prompts = prompts_of([70, 140, 196, 199, 200, 64 + 128, 130, 196])
    prompts[7] = prompts[2].clone()
    sampler = compiled(model, "parallel")
    sampler._run_lengths = OneForAll(Runs(5, 16))
    for rules in RULES:
        first = 0 if rules == RULES[0] else 2  # the longest ones only once: the naive loop is slow
        expected = naive(model, prompts[first:], seeds_of(8)[first:], rules)
        for part in (slice(first, 8), slice(2, 5), slice(3, 7)):
            images = sampler.generate(prompts[part], seeds=seeds_of(8)[part], rules=rules)
            assert torch.equal(images, expected[part.start - first : part.stop - first])
            assert sampler._compiler.num_compilations == 1
    assert sampler.model.transformer.h[0].attn.c_attn.layout == "tiles"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("num_pixels", [16, 64, NUM_PIXELS])
@pytest.mark.parametrize("num_images", [1, 2, 3, 8])
def test_compiled_images_are_the_naive_ones(num_pixels, num_images, own_graphs):
    model = varied_model("scores scaled by layer", num_pixels, width={16: 16, 64: 64, NUM_PIXELS: 128}[num_pixels])
    prompts = prompts_of([0, num_pixels // 2, num_pixels - 1, 5, num_pixels, 0, 1, 1][:num_images])
    sequential, parallel = compiled(model), compiled(model, "parallel")
    for rules in RULES:
        expected = naive(model, prompts, seeds_of(num_images), rules)
        for sampler in (sequential, parallel):
            assert torch.equal(sampler.generate(prompts, seeds=seeds_of(num_images), rules=rules), expected)
    assert (sequential._compiler.num_compilations, parallel._compiler.num_compilations) == (1, 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_images_that_share_prompts_compile_once(model, own_graphs):
    """Prompts of any length; of one pixel too, for which torch once fixed the length and gave up compiling for good."""
    sampler = compiled(model)
    for length in (1, 2, 70, 150, 200):
        for prompts in (prompts_of([length]) * 4, prompts_of([length], seed=1) * 4):
            images = sampler.generate(prompts, seeds=seeds_of(4))
            assert torch.equal(images, naive(model, prompts, seeds_of(4), RULES[0]))
    assert sampler._compiler.num_compilations <= 2, "one for a prompt that is shared, one for images without"
    two = prompts_of([70])[0], prompts_of([70], seed=1)[0]
    prompts = [two[0], two[0], two[1], two[1]]
    assert torch.equal(sampler.generate(prompts, seeds=seeds_of(4)), naive(model, prompts, seeds_of(4), RULES[0]))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_block_compiles(variant, own_graphs):
    """Rows for one image, several positions at once for three; pruned blocks have a graph each."""
    model = varied_model(variant, num_pixels=80)
    prompts = prompts_of([0, 70, 3])
    expected = naive(model, prompts, seeds_of(3), RULES[0])
    one, three = compiled(model), compiled(model, "parallel")
    three._run_lengths = OneForAll(Runs(5))
    assert torch.equal(one.generate(prompts[:1], seeds=seeds_of(1)), expected[:1])
    assert torch.equal(three.generate(prompts, seeds=seeds_of(3)), expected)
    assert one._compiler.num_compilations == three._compiler.num_compilations == (3 if "pruned" in variant else 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("num_images", [1, 2, 3])
def test_rounded_weights_compile_to_what_they_are_uncompiled(precision, num_images, own_graphs):
    """Torch rounds what comes out of a product to bfloat16, our kernels do not: the logits agree to its 2^-8."""
    model = freeze(varied_model(num_pixels=80), precision, in_place=False)
    tokens = torch.stack(prompts_of([80] * num_images))
    results = []
    with torch.no_grad():
        for compiler in (None, Compiler()):
            decoder = Decoder(model, StaticCache(model, num_images, torch.bfloat16), compiler)
            together = decoder.feed(tokens[:, :60], torch.arange(60).expand(num_images, 60), 64)
            steps = [decoder.feed(tokens[:, [p]], torch.full((num_images, 1), p), 128) for p in range(60, 80)]
            results.append(torch.cat([together, *steps], dim=1))
    assert compiler.num_compilations == 2
    assert (results[1] - results[0]).norm() < 2**-8 * results[0].norm()


@pytest.mark.parametrize("change", ["hook", "foreign module"])
def test_a_block_that_was_tampered_with_runs_as_it_is(shared_graphs, change):
    """Its graph would have the key of the plain one, and compute something else."""
    plain, model = varied_model(num_pixels=NUM_PIXELS), varied_model(num_pixels=NUM_PIXELS)
    if change == "hook":
        model.transformer.h[1].mlp.register_forward_hook(lambda module, given, out: out * 3)
    else:
        model.transformer.h[1].mlp.act = Tripled()
    expected = naive(model, prompts_of([0]), [5], RULES[0])
    assert not torch.equal(expected, naive(plain, prompts_of([0]), [5], RULES[0]))
    sampler = compiled(model)
    assert torch.equal(sampler.generate(seeds=[5]), expected)
    assert sampler._compiler.num_compilations <= 1


class Tripled(torch.nn.Module):
    def forward(self, x):
        return 3 * x


def test_two_streams_of_a_sampler_do_not_disturb_each_other(model):
    for decoder in ("sequential", "parallel"):
        sampler = Sampler(model, decoder=decoder)
        expected = [sampler.generate(seeds=seeds) for seeds in ([1], [2], [3, 4, 5])]
        streams = [sampler.stream(seeds=seeds, row_length=20) for seeds in ([1], [2], [3, 4, 5])]
        rows = zip(*streams, strict=True)
        images = [torch.cat([row.ids for row in stream], dim=1) for stream in zip(*rows, strict=True)]
        assert all(map(torch.equal, images, expected))


def test_rules_do_not_matter_to_graphs(model, shared_graphs):
    """The rules are applied outside the blocks."""
    sampler = compiled(model)
    sampler.generate(seeds=[1], num_pixels=2)
    before = sampler._compiler.num_compilations
    sampler.generate(seeds=[1], num_pixels=2, rules=SamplingRules(top_k=2))
    assert sampler._compiler.num_compilations == before


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("variant", ["no biases", "scores scaled by layer", "heads pruned"])
def test_blocks_compiled_as_for_a_gpu_draw_the_naive_images(variant, own_graphs, monkeypatch):
    """Just in time, each kind of graph once, whatever the batch, the lengths of prompts and the room."""
    monkeypatch.setattr(compilation, "_is_ahead_of_time", lambda device: False)
    model = varied_model(variant, num_pixels=144)
    kinds = 3 if "pruned" in variant else 1
    sequential, parallel = compiled(model), compiled(model, "parallel")
    for lengths in ([0], [0, 70, 3], [130, 140, 143, 144], [2, 2, 2, 140, 7]):
        prompts = prompts_of(lengths)
        expected = naive(model, prompts, seeds_of(len(lengths)), RULES[0])
        assert torch.equal(sequential.generate(prompts, seeds=seeds_of(len(lengths))), expected)
        assert torch.equal(parallel.generate(prompts, seeds=seeds_of(len(lengths))), expected)
    assert sequential._compiler.num_compilations == 2 * kinds, "one for a single image, one for more"
    assert parallel._compiler.num_compilations <= 4 * kinds, "and runs may be of one pixel or of more"
    assert not list(own_graphs.glob("*.pt2"))
