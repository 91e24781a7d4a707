"""The sampler against the naive loop, and against itself in other batches."""

import pytest
import torch

from imagegpt import ImageGPTForImageClassification, ImageGPTPipeline
from imagegpt.checkpoints.registry import bundled_models
from imagegpt.sampling import ExecutionPlan, Sampler, SamplingRules
from imagegpt.sampling.backends.cpp import CppBackend
from naive import RULES, naive, seeds_of


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("num_given", [0, 1, 7, 15])
def test_cached_sampling_equals_the_naive_loop(build_model, rules, num_given):
    model = build_model(use_bias=False, scale_attn_by_inverse_layer_idx=True)
    prompts = torch.randint(0, 10, (3, num_given))
    images = Sampler(model).generate(prompts, seeds=seeds_of(3), rules=rules)
    assert torch.equal(images, naive(model, prompts, seeds_of(3), rules))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_attention_implementations_sample_the_same_images(tiny_model, backend):
    expected = Sampler(tiny_model).generate(seeds=seeds_of(4))
    tiny_model.set_attn_implementation(backend)
    assert torch.equal(Sampler(tiny_model).generate(seeds=seeds_of(4)), expected)


def batches_agree(model, rules):
    sampler, seeds = Sampler(model), seeds_of(8)
    together = sampler.generate(seeds=seeds, rules=rules)
    alone = torch.cat([sampler.generate(seeds=[seed], rules=rules) for seed in seeds])
    by_threes = torch.cat([sampler.generate(seeds=seeds[i : i + 3], rules=rules) for i in (0, 3, 6)])
    assert together.unique(dim=0).shape[0] == 8, "the test needs different images"
    assert torch.equal(together, alone)
    assert torch.equal(together, by_threes)


@pytest.mark.parametrize("rules", [SamplingRules(), SamplingRules(top_p=0.8)], ids=str)
def test_an_image_does_not_depend_on_its_batch(build_model, rules):
    batches_agree(build_model(vocab_size=33, n_positions=64, n_embd=32), rules)


def test_an_image_of_the_bundled_model_does_not_depend_on_its_batch():
    if "digits" not in {bundled.name for bundled in bundled_models()}:
        pytest.skip("the digits model is missing")
    batches_agree(ImageGPTPipeline.from_pretrained("digits", device="cpu").model, SamplingRules())


def test_prompts_shared_and_distinct_in_one_batch(tiny_model):
    """Equal prompts share their cache; each image must still continue its own prompt."""
    sampler = Sampler(tiny_model)
    prompts = torch.tensor([[5, 1, 2], [0, 0, 9], [5, 1, 2], [3, 3, 3], [0, 0, 9]])
    images = sampler.generate(prompts, seeds=seeds_of(5))
    assert torch.equal(images[:, :3], prompts)
    alone = [sampler.generate(prompts[i : i + 1], seeds=seeds_of(5)[i : i + 1]) for i in range(5)]
    assert torch.equal(images, torch.cat(alone))


def test_completing_the_start_of_an_image_gives_the_image(tiny_model):
    sampler = Sampler(tiny_model)
    images = sampler.generate(seeds=seeds_of(3))
    assert torch.equal(sampler.generate(images[:, :6], seeds=seeds_of(3)), images)


def test_images_depend_on_seeds(tiny_model):
    sampler = Sampler(tiny_model)
    first, again, other = (sampler.generate(seeds=seeds_of(2, seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    twins = sampler.generate(seeds=[5, 5])
    assert torch.equal(twins[0], twins[1])


def test_greedy_equals_top_1_for_any_seed(tiny_model):
    sampler = Sampler(tiny_model)
    greedy = sampler.generate(seeds=[1, 2], rules=SamplingRules(temperature=0))
    assert torch.equal(greedy, sampler.generate(seeds=[3, 4], rules=SamplingRules(top_k=1)))
    assert torch.equal(greedy[0], greedy[1])


def test_a_bfloat16_model_uses_bfloat16_weights_and_float32_sums(build_model):
    model = build_model().to(torch.bfloat16)
    sampler = Sampler(model)
    assert sampler.model.transformer.h[0].mlp.c_fc.weight.dtype == torch.bfloat16
    assert sampler.plan.precision == "bfloat16"
    images = sampler.generate(seeds=seeds_of(3))
    assert images.dtype == torch.int64
    assert model.dtype == torch.bfloat16
    same = (images == naive(model.float(), images[:, :0], seeds_of(3), SamplingRules())).float().mean()
    assert same > 0.5, "rounding changes only some pixels"


def test_dropout_is_off_for_a_model_in_training_mode(build_model):
    expected = Sampler(build_model()).generate(seeds=seeds_of(3))
    training = build_model(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).train()
    assert torch.equal(Sampler(training).generate(seeds=seeds_of(3)), expected)
    assert training.training


def test_full_prompts_are_returned_and_num_pixels_shortens_images(tiny_model):
    sampler = Sampler(tiny_model)
    whole = torch.randint(0, 10, (2, 16))
    assert torch.equal(sampler.generate(whole, seeds=[0, 1]), whole)
    short = sampler.generate(seeds=[0, 1], num_pixels=5)
    assert torch.equal(short, sampler.generate(seeds=[0, 1])[:, :5])
    assert sampler.generate(seeds=[]).shape == (0, 16)


def test_prompts_of_different_lengths_in_one_batch(tiny_model):
    sampler = Sampler(tiny_model)
    prompts = [torch.randint(0, 10, (given,)) for given in (0, 5, 16, 5, 15, 1, 16, 16)]
    prompts[3] = prompts[1].clone()
    images = sampler.generate(prompts, seeds=seeds_of(8))
    for index, prompt in enumerate(prompts):
        assert torch.equal(images[index, : len(prompt)], prompt)
        alone = sampler.generate(prompt.unsqueeze(0), seeds=seeds_of(8)[index : index + 1])
        assert torch.equal(images[index : index + 1], alone)


def test_equal_prompts_are_prefilled_once(tiny_model, monkeypatch):
    prefill, calls = CppBackend._prefill, []

    def record(self, tokens, first, cache):
        calls.append((first, tokens.tolist()))
        prefill(self, tokens, first, cache)

    monkeypatch.setattr(CppBackend, "_prefill", record)
    prompts = torch.tensor([[5, 1, 2, 7, 3], [0, 0, 9, 1, 1], [5, 1, 2, 7, 3], [5, 1, 2, 3, 4]])
    Sampler(tiny_model).generate(prompts, seeds=seeds_of(4))
    assert [tokens for first, tokens in calls if first == 0] == [[10, 5, 1, 2], [10, 0, 0, 9]]
    assert [tokens for first, tokens in calls if first == 4] == [[7], [1], [7], [3]], "the rest of each prompt"


def test_stream_yields_the_rows_of_the_images(tiny_model):
    sampler = Sampler(tiny_model)
    prompts = torch.randint(0, 10, (3, 6))
    images = sampler.generate(prompts, seeds=seeds_of(3))
    rows = list(sampler.stream(prompts, seeds=seeds_of(3)))
    assert [(row.images, row.row) for row in rows] == [(range(3), index) for index in range(4)]
    assert torch.equal(torch.cat([row.ids for row in rows], dim=1), images)
    assert not rows[0].ids.is_inference()
    whole = list(sampler.stream(images, seeds=seeds_of(3), row_length=8))
    assert torch.equal(torch.cat([row.ids for row in whole], dim=1), images)


def test_stream_yields_a_row_before_it_samples_the_next(tiny_model, monkeypatch):
    sampler = Sampler(tiny_model)
    rows = sampler.stream(seeds=[1])
    first = next(rows)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    with torch.no_grad():
        sampler.model.transformer.wpe.weight[9] = torch.nan  # not read yet
    assert torch.equal(first.ids, Sampler(tiny_model).generate(seeds=[1])[:, :4])
    with pytest.raises(ValueError, match="not finite"):
        list(rows)


def test_stream_refuses_an_unsuitable_row_length_at_once(tiny_model, build_model):
    with pytest.raises(ValueError, match=r"^16 pixels are not a whole number of rows of 5: give row_length"):
        Sampler(tiny_model).stream(seeds=[1], row_length=5)


@pytest.mark.parametrize("decoder", ["sequential", "parallel"])
def test_max_memory_splits_batches_and_changes_nothing(build_model, decoder, monkeypatch):
    model = build_model(n_positions=64, n_embd=32)  # a multiple of 32 outputs, so that no tile is padded
    expected = Sampler(model).generate(seeds=seeds_of(5))
    weights = sum(parameter.nbytes for parameter in model.parameters())
    image = 2 * 2 * 64 * 32 * 4 + 64 * 10 * 4 + 64 * 8  # keys and values of two blocks, noise, ids
    table = 4 * 10 * 10 if decoder == "parallel" else 0  # the bigram table
    sampler = Sampler(model, max_memory=weights + table + 2 * image + 100, decoder=decoder)
    sizes, open_session = [], ExecutionPlan.open_session
    monkeypatch.setattr(
        ExecutionPlan, "open_session", lambda plan, size, *rest: sizes.append(size) or open_session(plan, size, *rest)
    )
    assert torch.equal(sampler.generate(seeds=seeds_of(5)), expected)
    assert sizes == [2, 2, 1]
    rows = list(sampler.stream(seeds=seeds_of(5)))
    assert [row.images for row in rows[::8]] == [range(2), range(2, 4), range(4, 5)]
    with pytest.raises(ValueError, match=rf"^max_memory is 1,000 bytes, but the weights take {weights:,} and an image"):
        Sampler(model, max_memory=1000)


@pytest.fixture
def small_machine(monkeypatch):
    """A machine with memory for two images; returns the list of requested sizes."""
    sizes, open_session = [], ExecutionPlan.open_session

    def open_small(plan, capacity, *rest):
        sizes.append(capacity)
        if capacity > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return open_session(plan, capacity, *rest)

    monkeypatch.setattr(ExecutionPlan, "open_session", open_small)
    return sizes


def test_running_out_of_memory_splits_the_batch_and_changes_nothing(tiny_model, small_machine):
    sampler, seen = Sampler(tiny_model), []
    expected = torch.cat([sampler.generate(seeds=[seed]) for seed in seeds_of(7)])
    small_machine.clear()
    assert torch.equal(sampler.generate(seeds=seeds_of(7), on_progress=seen.append), expected)
    assert small_machine == [7, 3, 1, 2, 4, 2, 2]
    assert seen == sorted(seen)
    assert seen[-1] == 7 * 16


def test_running_out_of_memory_repeats_no_row(tiny_model, small_machine):
    """Regression: rows came twice, once for the batch that was too large."""
    rows = list(Sampler(tiny_model).stream(seeds=seeds_of(7)))
    given = [(image, row.row) for row in rows for image in row.images]
    assert sorted(given) == [(image, row) for image in range(7) for row in range(4)]


def test_one_image_that_does_not_fit_is_an_error(tiny_model, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    sampler = Sampler(tiny_model)
    monkeypatch.setattr(ExecutionPlan, "open_session", fail)
    with pytest.raises(torch.OutOfMemoryError):
        sampler.generate(seeds=[1])


def test_two_streams_are_independent(tiny_model):
    """Regression: on a GPU they shared their state."""
    sampler = Sampler(tiny_model)
    pairs = list(zip(sampler.stream(seeds=[1]), sampler.stream(seeds=[2]), strict=True))
    for place, seed in enumerate((1, 2)):
        image = torch.cat([pair[place].ids for pair in pairs], dim=1)
        assert torch.equal(image, sampler.generate(seeds=[seed]))


@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_autocast_around_the_sampler_changes_nothing(tiny_model, backend):
    sampler = Sampler(tiny_model, backend=backend)
    expected = sampler.generate(torch.tensor([[1, 2, 3]]), seeds=[7])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sampler.generate(torch.tensor([[1, 2, 3]]), seeds=[7]), expected)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"precision": "int4"}, "precision is 'int4': choose one of auto, float32, bfloat16, int8, or None"),
        ({"decoder": "magic"}, "there is no decoder 'magic': choose one of parallel, sequential"),
        ({"backend": "tpu"}, "backend is 'tpu': choose one of auto, cpp, torch, cuda"),
        ({"backend": "cuda"}, "backend is 'cuda' and the model is on cpu: move it, or choose another"),
    ],
)
def test_unknown_options_are_refused(tiny_model, option, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Sampler(tiny_model, **option)


def test_progress_counts_the_pixels_of_all_images(tiny_model):
    seen = []
    Sampler(tiny_model).generate(torch.zeros(2, 3, dtype=torch.int64), seeds=[0, 1], on_progress=seen.append)
    assert seen == [2 * pixels for pixels in range(1, 14)]


def test_the_prompt_is_not_edited(tiny_model):
    prompts = torch.zeros(2, 3, dtype=torch.int64)
    Sampler(tiny_model).generate(prompts, seeds=[0, 1])
    assert not prompts.any()


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (torch.zeros(2, 17, dtype=torch.int64), {}, "the prompts have 17 pixels, but the images have only 16: shorten"),
        (
            torch.zeros(2, 5, dtype=torch.int64),
            {"num_pixels": 4},
            "the prompts have 5 pixels, but the images have only 4",
        ),
        (
            torch.full((2, 2), 10),
            {},
            r"the prompts contain 10 \(the start token, which the sampler adds\): this model has colours 0 to 9",
        ),
        (torch.full((2, 2), 11), {}, "the prompts contain 11: this model has colours 0 to 9"),
        (torch.full((2, 2), -1), {}, "the prompts contain -1: this model has colours 0 to 9"),
        (torch.zeros(2, 2), {}, "prompts are torch.float32: give colour ids as integers"),
        (torch.zeros(3, 2, dtype=torch.int64), {}, "2 seeds were given for 3 prompts: give one seed per image"),
        (torch.zeros(2, dtype=torch.int64), {}, r"prompts have the shape \(2,\): give \(images, pixels\)"),
        (None, {"num_pixels": 0}, "num_pixels is 0: it must be an integer from 1"),
        (None, {"num_pixels": 17}, "num_pixels is 17: this model samples 1 to 16 pixels"),
        (None, {"seeds": [0, -3]}, "seed is -3: it must be an integer from 0"),
    ],
)
def test_invalid_prompts_are_refused(tiny_model, prompts, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Sampler(tiny_model).generate(prompts, **{"seeds": [0, 1], **options})


def test_models_that_cannot_sample_are_refused(build_model, tiny_model):
    with pytest.raises(ValueError, match="bidirectional"):
        Sampler(build_model(is_causal=False))
    with pytest.raises(ValueError, match="cross-attention"):
        Sampler(build_model(add_cross_attention=True))
    with pytest.raises(TypeError, match="cannot sample from a ImageGPTForImageClassification"):
        Sampler(ImageGPTForImageClassification(tiny_model.config))


def test_nan_weights_raise_an_error(tiny_model):
    with torch.no_grad():
        tiny_model.transformer.wpe.weight[9] = torch.nan
    with pytest.raises(ValueError, match="logits are not finite"):
        Sampler(tiny_model).generate(seeds=[0])
    assert Sampler(tiny_model).generate(seeds=[0], num_pixels=9).shape == (1, 9)


def test_sampled_images_can_be_used_for_training(tiny_model):
    """Regression: they were inference tensors, which autograd refuses to save."""
    images = Sampler(tiny_model).generate(None, seeds=[1, 2])
    tokens = torch.nn.functional.pad(images, (1, 0), value=tiny_model.config.sos_token_id)
    tiny_model(tokens, labels=tokens).loss.backward()
    assert not images.is_inference()
