"""Inputs of `generate`: ids, embeddings, padding, positions, a filled cache, and caches of every class."""

import inspect
import math

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, StaticCache
from transformers.cache_utils import DynamicSlidingWindowLayer, StaticSlidingWindowLayer

from generating import (
    COLOURS,
    EAGER_AND_SDPA,
    EVERY_KIND,
    PIXELS,
    PROMPT,
    generator,
    inputs_of,
    logits_after,
    naive,
    prompts,
)
from helpers import before_transformers, largest_difference, reference_for, tiny_model
from imagegpt import ImageGPTForImageClassification, ImageGPTModel
from imagegpt.model.cache import CACHE_ARGUMENT

MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
FULL = {"return_dict_in_generate": True, "output_scores": True, "do_sample": False}
EITHER_NAME = pytest.mark.parametrize("name", ["cache", "past_key_values"])


def embedded(model, ids):
    return model.transformer.wte(ids).detach()


# --- Embeddings ---


@EVERY_KIND
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 2}, {"cache_implementation": "static"}, {"use_cache": False}], ids=str
)
@pytest.mark.parametrize("with_ids", [True, False], ids=["with_ids", "alone"])
def test_embeddings_give_the_image_of_their_ids(kind, options, with_ids):
    model, inputs = generator(kind), inputs_of(kind)
    expected = model.generate(prompts(), do_sample=False, **options, **inputs)
    ids = (prompts(),) if with_ids else ()
    images = model.generate(*ids, inputs_embeds=embedded(model, prompts()), do_sample=False, **options, **inputs)
    assert torch.equal(images, expected if with_ids else expected[:, PROMPT:])


def test_embeddings_with_ids_as_in_transformers_own_imagegpt():
    model = generator(dtype=torch.float32)
    options = {"inputs_embeds": embedded(model, prompts()), "do_sample": False, "max_new_tokens": 6}
    assert torch.equal(model.generate(prompts(), **options), reference_for(model).generate(prompts(), **options))


def test_model_reads_embeddings_not_ids():
    model = generator()
    others = embedded(model, prompts(seed=5))
    images = model.generate(prompts(), inputs_embeds=others, do_sample=False)
    assert torch.equal(images[:, :PROMPT], prompts())
    assert torch.equal(images[:, PROMPT:], naive(model, prompts(seed=5))[:, PROMPT:])


def test_fewer_ids_than_embeddings():
    """A soft prompt: positions follow the embeddings; transformers silently derives them from the ids."""
    model = generator()
    images = model.generate(prompts(length=1), inputs_embeds=embedded(model, prompts()), do_sample=False)
    assert torch.equal(images[:, 1:], naive(model, prompts())[:, PROMPT:])


@pytest.mark.parametrize(
    ("embeds", "message"),
    [
        (torch.zeros(2, 4), r"the prompt is \(2, 4\)"),
        (torch.zeros(2, 0, 16), r"the prompt is \(2, 0, 16\), which is empty"),
        (torch.zeros(2, 4, 15), r"inputs_embeds has the shape \(2, 4, 15\): give \(2, positions, 16\)"),
        (torch.zeros(3, 4, 16), r"inputs_embeds has the shape \(3, 4, 16\): give \(2, positions, 16\)"),
        (torch.zeros(2, 14, 16), "14 tokens were requested"),
    ],
)
def test_wrong_embeddings(embeds, message):
    with pytest.raises(ValueError, match=message):
        generator().generate(prompts(), inputs_embeds=embeds)


def test_embeddings_are_not_read_in_chunks():
    model = generator()
    with pytest.raises(ValueError, match=r"^prefill_chunk_size was given with inputs_embeds"):
        model.generate(inputs_embeds=embedded(model, prompts()), prefill_chunk_size=2)


# --- Prompts that are none ---


@pytest.mark.parametrize("shape", [(1, 0), (0, 4), (0, 0)], ids=str)
@pytest.mark.parametrize("name", ["inputs", "input_ids"])
def test_an_empty_prompt_is_one_sentence(name, shape):
    with pytest.raises(ValueError, match=r"^the prompt is \(\d, \d\), which is empty: give at least the start token"):
        generator().generate(**{name: torch.zeros(shape, dtype=torch.long)})


def test_prompts_under_both_names_are_one_sentence():
    with pytest.raises(ValueError, match=r"^inputs and input_ids were both given: they are one argument, drop either$"):
        generator().generate(prompts(), input_ids=prompts())


# --- Padding and positions ---


@EVERY_KIND
@EAGER_AND_SDPA
@pytest.mark.parametrize(
    "options", [{}, {"cache_implementation": "static"}, {"use_cache": False}, {"prefill_chunk_size": 3}], ids=str
)
def test_padding_on_the_left(kind, backend, options):
    model, inputs = generator(kind, backend), inputs_of(kind)
    images = model.generate(prompts(), attention_mask=MASK, do_sample=False, max_new_tokens=8, **options, **inputs)
    assert torch.equal(images, naive(model, prompts(), num_new=8, mask=MASK, **inputs))
    mine = {name: x[:1] for name, x in inputs.items()}
    alone = model.generate(prompts()[:1, 2:], do_sample=False, max_new_tokens=8, **options, **mine)
    assert torch.equal(images[:1, 2:], alone)


def test_padding_uses_no_positions():
    """A fully padded batch generates whole images, like each of its prompts alone."""
    model = generator()
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), prompts()], dim=1)
    mask = torch.cat([torch.zeros(2, 3, dtype=torch.long), torch.ones_like(prompts())], dim=1)
    images = model.generate(padded, attention_mask=mask, do_sample=False)
    assert torch.equal(images[:, 3:], naive(model, prompts()))


def test_positions_can_be_given():
    model = generator()
    options = {"do_sample": False, "max_new_tokens": 6}
    expected = model.generate(prompts(), **options)
    assert torch.equal(model.generate(prompts(), position_ids=torch.arange(PROMPT).expand(2, -1), **options), expected)
    later = torch.arange(PROMPT).expand(2, -1) + 2
    assert not torch.equal(model.generate(prompts(), position_ids=later, **options), expected)


def test_token_types_as_in_transformers_own_imagegpt():
    model = generator(dtype=torch.float32)
    options = {"token_type_ids": prompts(seed=3), "do_sample": False, "max_new_tokens": 6, "num_beams": 2}
    assert torch.equal(model.generate(prompts(), **options), reference_for(model).generate(prompts(), **options))


@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_head_mask_is_not_repeated_for_the_beams(num_beams):
    model = generator(backend="eager")
    masked = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    images = model.generate(prompts(1), head_mask=masked, num_beams=num_beams, do_sample=False)
    if num_beams == 1:
        assert torch.equal(images, naive(model, prompts(1), head_mask=masked))
    plain = model.generate(prompts(1), num_beams=num_beams, do_sample=False)
    assert images.shape == plain.shape
    assert not torch.equal(images, plain)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_images_packed_in_a_row_by_their_positions(backend):
    """Positions that restart at 0 start another image, which does not see the previous one."""
    model = generator(backend=backend)
    lengths = [4, 6]
    alone = [prompts(1, length, seed=length) for length in lengths]
    packed = model(
        torch.cat(alone, dim=1), position_ids=torch.cat([torch.arange(n) for n in lengths])[None], use_cache=False
    ).logits
    expected = torch.cat([model(ids, use_cache=False).logits for ids in alone], dim=1)
    assert largest_difference(packed, expected) < 1e-12


@EAGER_AND_SDPA
def test_a_mask_of_four_axes_shares_a_prefix(backend):
    """Three candidates for the last pixel in one row; each sees the prompt and itself."""
    model = generator(backend=backend)
    ids = prompts(1)
    candidates = torch.tensor([[3, 5, 7]])
    seen = torch.ones(7, 7, dtype=torch.bool).tril()
    seen[4:, 4:] = torch.eye(3, dtype=torch.bool)
    mask = torch.zeros(7, 7, dtype=torch.float64).masked_fill(~seen, torch.finfo(torch.float64).min)[None, None]
    row = torch.cat([ids, candidates], dim=1)
    shared = model(row, attention_mask=mask, position_ids=torch.tensor([[0, 1, 2, 3, 4, 4, 4]]), use_cache=False)
    alone = torch.cat([ids.expand(3, -1), candidates.T], dim=1)
    assert largest_difference(shared.logits[0, 4:].float(), logits_after(model, alone)) < 1e-6


# --- Names of the cache ---


@pytest.mark.parametrize("model_class", [ImageGPTModel, ImageGPTForImageClassification, type(generator())])
def test_the_signature_names_the_cache_either_way(model_class):
    parameters = inspect.signature(model_class.forward).parameters
    assert {"cache", "past_key_values"} <= parameters.keys()
    assert parameters["cache"].default is None
    assert list(parameters)[:3] == ["self", "input_ids", "past_key_values"]  # as transformers 5.0 orders them
    assert list(parameters)[-1] == "kwargs"


def test_filled_cache_wins_over_empty_one():
    model = generator()
    expected = model(prompts(length=6)).logits[:, PROMPT:]
    for filled, empty in (("cache", "past_key_values"), ("past_key_values", "cache")):
        past, fresh = model(prompts(length=6)[:, :PROMPT]).get(CACHE_ARGUMENT), DynamicCache(config=model.config)
        output = model(prompts(length=6)[:, PROMPT:], **{filled: past, empty: fresh})
        assert largest_difference(output.logits, expected) < 1e-12
        assert output.get(CACHE_ARGUMENT) is past
        assert fresh.get_seq_length() == 0
    positional = model(
        prompts(length=6)[:, PROMPT:], DynamicCache(), cache=model(prompts(length=6)[:, :PROMPT]).get(CACHE_ARGUMENT)
    )
    assert largest_difference(positional.logits, expected) < 1e-12
    same = DynamicCache()
    model(prompts(), cache=same, past_key_values=same)
    assert same.get_seq_length() == PROMPT


def test_two_filled_caches_are_one_sentence():
    model = generator()
    past = [model(prompts()).get(CACHE_ARGUMENT) for _ in range(2)]
    for call in (model, model.generate):
        with pytest.raises(ValueError, match=r"^cache and past_key_values were both given"):
            call(prompts(length=6), cache=past[0], past_key_values=past[1])


def test_the_inputs_of_a_step_have_the_cache_under_the_name_that_peft_reads():
    model = generator()
    past = model(prompts()).get(CACHE_ARGUMENT)
    arranged = model.prepare_inputs_for_generation(
        prompts(length=5), next_sequence_length=1, **{CACHE_ARGUMENT: past}, custom=42
    )
    assert arranged["past_key_values"] is past
    assert "cache" not in arranged
    assert arranged["custom"] == 42
    assert arranged["input_ids"].shape == (2, 1)


# --- Continued from a cache ---


@EVERY_KIND
@EITHER_NAME
@pytest.mark.parametrize("mask", [None, MASK], ids=["", "padded"])
@pytest.mark.parametrize("only_new", [False, True], ids=["all_ids", "new_ids"])
def test_resume_from_cache(kind, name, mask, only_new):
    """Three pixels and one more from the cache equal four: ids, scores and cache."""
    model, inputs = generator(kind), inputs_of(kind)
    masked = {} if mask is None else {"attention_mask": mask}
    whole = model.generate(prompts(), max_new_tokens=4, **FULL, **masked, **inputs)
    first = model.generate(prompts(), max_new_tokens=3, **FULL, **masked, **inputs)
    longer = torch.cat([torch.ones_like(prompts()) if mask is None else mask, torch.ones(2, 3, dtype=torch.long)], 1)
    ids = first.sequences[:, -1:] if only_new else first.sequences
    rest = model.generate(
        ids, attention_mask=longer, max_new_tokens=1, **{name: first.get(CACHE_ARGUMENT)}, **FULL, **inputs
    )
    assert torch.equal(rest.sequences[:, -1], whole.sequences[:, -1])
    assert largest_difference(rest.scores[0], whole.scores[3]) < 1e-6
    layers = [
        getattr(output.get(CACHE_ARGUMENT), "self_attention_cache", output.get(CACHE_ARGUMENT)).layers
        for output in (rest, whole)
    ]
    for ours, theirs in zip(*layers, strict=True):
        assert largest_difference(ours.keys, theirs.keys) < 1e-12
        assert largest_difference(ours.values, theirs.values) < 1e-12


def test_resume_from_embeddings():
    model = generator()
    embeds = embedded(model, prompts())
    whole = model.generate(inputs_embeds=embeds, max_new_tokens=4, **FULL)
    first = model.generate(inputs_embeds=embeds, max_new_tokens=3, **FULL)
    longer = torch.cat([embeds, embedded(model, first.sequences)], dim=1)
    rest = model.generate(inputs_embeds=longer, max_new_tokens=1, past_key_values=first.get(CACHE_ARGUMENT), **FULL)
    assert torch.equal(rest.sequences[:, -1], whole.sequences[:, -1])
    assert largest_difference(rest.scores[0], whole.scores[3]) < 1e-6


@pytest.mark.parametrize("length", [1, PROMPT])
def test_a_prompt_that_the_cache_holds_already_is_one_sentence(length):
    """transformers would feed nothing, or everything again, and silently sample other pixels."""
    model = generator()
    past = model(prompts()).get(CACHE_ARGUMENT)
    with pytest.raises(ValueError, match=rf"^the prompt has {length} positions and the cache holds {PROMPT}: give all"):
        model.generate(prompts(length=length), past_key_values=past)


# --- Caches of every class ---


@EVERY_KIND
@pytest.mark.parametrize(
    "cache",
    [
        lambda config: DynamicCache(config=config),
        lambda config: DynamicCache(),
        lambda config: StaticCache(config=config, max_cache_len=PIXELS),
        lambda config: StaticCache(config=config, max_cache_len=20),
        lambda config: EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config)),
    ],
    ids=["dynamic", "dynamic_without_config", "static", "static_larger", "encoder_decoder"],
)
@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_cache_of_any_class(kind, cache, num_beams):
    model, inputs = generator(kind), inputs_of(kind)
    expected = model.generate(prompts(), do_sample=False, num_beams=num_beams, **inputs)
    images = model.generate(
        prompts(), past_key_values=cache(model.config), do_sample=False, num_beams=num_beams, **inputs
    )
    assert torch.equal(images, expected)


@EVERY_KIND
@pytest.mark.parametrize(
    "options",
    [
        {"cache_implementation": "dynamic"},
        {"cache_implementation": "static"},
        {"cache_implementation": "static", "max_cache_len": 20},
        {"cache_implementation": "hybrid"},
        {"prefill_chunk_size": 3},
        {"prefill_chunk_size": 3, "cache_implementation": "static"},
    ],
    ids=lambda options: "-".join(str(x) for x in options.values()),
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_cache_by_its_name(kind, options, dtype):
    model = generator(kind, dtype=dtype)
    inputs = {name: x.to(dtype) for name, x in inputs_of(kind).items()}
    output = model.generate(prompts(), **FULL, **options, **inputs)
    assert torch.equal(output.sequences, model.generate(prompts(), do_sample=False, **inputs))
    if options.get("cache_implementation") == "static":
        layers = getattr(output.get(CACHE_ARGUMENT), "self_attention_cache", output.get(CACHE_ARGUMENT)).layers
        assert {layer.keys.shape for layer in layers} == {(2, 2, options.get("max_cache_len", PIXELS), 8)}


@EVERY_KIND
@pytest.mark.parametrize("kind_of_layer", [DynamicSlidingWindowLayer, StaticSlidingWindowLayer])
def test_a_sliding_cache_is_a_window(kind, kind_of_layer):
    """Each pixel sees itself and the previous four, the size of the cache's window."""
    model, inputs = generator(kind), inputs_of(kind)
    cache = DynamicCache(config=model.config)
    if kind_of_layer is StaticSlidingWindowLayer:
        cache.layers = [kind_of_layer(max_cache_len=PIXELS, sliding_window=5) for _ in range(2)]
    else:
        cache.layers = [kind_of_layer(sliding_window=5) for _ in range(2)]
    images = model.generate(prompts(), past_key_values=cache, do_sample=False, **inputs)
    seen = torch.ones(PIXELS, PIXELS, dtype=torch.bool).tril().triu(-4)
    mask = torch.zeros(PIXELS, PIXELS, dtype=torch.float64).masked_fill(~seen, -1e300)[None, None]
    ids = prompts()
    while ids.shape[1] <= PIXELS:
        length = ids.shape[1]
        logits = model(ids, attention_mask=mask[:, :, :length, :length], use_cache=False, **inputs).logits[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(images, ids)
    assert not torch.equal(images, model.generate(prompts(), do_sample=False, **inputs))


@EVERY_KIND
@pytest.mark.parametrize(
    "backend",
    [
        {"backend": "fp8"},
        {"backend": "quanto", "nbits": 4, "q_group_size": 8, "residual_length": 2},
        {"backend": "hqq"},
    ],
    ids=lambda options: options["backend"],
)
def test_a_quantised_cache(kind, backend):
    if backend["backend"] == "fp8" and before_transformers("5.21"):
        pytest.skip("transformers before 5.21 has no fp8 cache")
    if backend["backend"] == "quanto":
        pytest.importorskip("optimum.quanto", reason="optimum-quanto is no dependency of ours")
    if backend["backend"] == "hqq":
        pytest.importorskip("hqq", reason="hqq is no dependency of ours")
    model, inputs = generator(kind, dtype=torch.float32), {k: x.float() for k, x in inputs_of(kind).items()}
    options = {**FULL, **inputs, "cache_implementation": "quantized", "cache_config": dict(backend)}
    output = model.generate(prompts(), **options)
    cache = output.get(CACHE_ARGUMENT)
    cache = getattr(cache, "self_attention_cache", cache)
    assert all("Quantized" in type(layer).__name__ for layer in cache.layers)
    exact = model.generate(prompts(), **{**FULL, **inputs})
    assert torch.equal(output.sequences[:, : PROMPT + 1], exact.sequences[:, : PROMPT + 1])
    # The second pixel is the first that sees rounded keys: close to the exact one, and not the same.
    error = (output.scores[1] - exact.scores[1]).abs().max().item()
    assert 0 < error < 0.5
    assert math.isfinite(output.scores[-1].max().item())


def test_a_quantised_cache_without_its_library_is_one_sentence():
    try:
        import optimum.quanto  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="You need to install optimum-quanto"):
            generator().generate(prompts(), cache_implementation="quantized")


@pytest.mark.parametrize("kind", ["offloaded", "offloaded_static"])
def test_offloading_from_the_cpu_is_one_sentence(kind):
    with pytest.raises(ValueError, match=f'^cache_implementation="{kind}" was given for a model on the CPU'):
        generator().generate(prompts(), cache_implementation=kind)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["offloaded", "offloaded_static"])
def test_offloaded_caches_on_a_gpu(kind):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model = generator().cuda()
    images = model.generate(prompts().cuda(), cache_implementation=kind, do_sample=False, disable_compile=True)
    assert torch.equal(images, naive(model, prompts().cuda()))


def test_continuous_batching_is_one_sentence():
    """With any ImageGPT its threads fail, and prompts are returned without pixels."""
    for call in (
        lambda model: model.generate(prompts(), cache_implementation="paged"),
        lambda model: model.generate_batch(prompts().tolist()),
    ):
        with pytest.raises(ValueError, match="continuous batching is for texts"):
            call(generator())


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("options", [{}, {"prompt_lookup_num_tokens": 2}], ids=["greedy", "assisted"])
def test_logits_to_keep_changes_nothing(keep, options):
    model = generator()
    images = model.generate(prompts(1), logits_to_keep=keep, do_sample=False, **options)
    assert torch.equal(images, naive(model, prompts(1)))
    assert images.max() <= COLOURS


def test_the_classifier_takes_a_cache_under_the_new_name():
    """The classifier accepts both names of the cache."""
    model = tiny_model(ImageGPTForImageClassification, shift_inputs=False)
    cache = DynamicCache(config=model.config)
    assert model(prompts(), cache=cache).get(CACHE_ARGUMENT) is cache
