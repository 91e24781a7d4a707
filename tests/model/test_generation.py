"""`generate()`: whole images, without a prompt too, and no start token among the pixels."""

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from helpers import image_ids, largest_difference, tiny_model
from imagegpt import ImageGPTForCausalImageModeling

SOS = 16
METHODS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 0},
    "top_k_top_p": {"do_sample": True, "top_k": 5, "top_p": 0.9, "temperature": 0.8},
    "beam": {"num_beams": 3, "do_sample": False},
    "beam_sampling": {"num_beams": 3, "do_sample": True},
    "static": {"do_sample": False, "cache_implementation": "static"},
    "no_cache": {"do_sample": False, "use_cache": False},
}


def naive_greedy(model, ids):
    """The reference: repeatedly the most probable next pixel, without a cache."""
    with torch.no_grad():
        while ids.shape[1] <= model.config.n_positions:
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return ids


def prompts(batch=3, length=5):
    return image_ids(batch=batch, pixels=length)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_generates_whole_images_and_keeps_prompt(method):
    model = tiny_model()
    images = model.generate(prompts(), **METHODS[method])
    assert images.shape == (3, 17)
    assert torch.equal(images[:, :5], prompts())
    assert images[:, 1:].min() >= 0
    assert images[:, 1:].max() < SOS


@pytest.mark.parametrize("method", ["greedy", "static", "no_cache"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_greedy_matches_reference(method, backend):
    model = tiny_model(backend=backend, n_positions=36)
    expected = naive_greedy(model, prompts())
    assert torch.equal(model.generate(prompts(), **METHODS[method]), expected)


def test_assisted_decoding_gives_the_greedy_image():
    # A helper of other weights, so that most of its guesses are wrong and the cache is cropped.
    model, helper = tiny_model(), tiny_model(seed=1, n_layer=1)
    prompt = prompts(batch=1)
    expected = naive_greedy(model, prompt)
    assert torch.equal(model.generate(prompt, assistant_model=helper, do_sample=False), expected)
    # And one of the same weights, whose guesses are all right.
    assert torch.equal(model.generate(prompt, assistant_model=tiny_model(), do_sample=False), expected)


@pytest.mark.parametrize(
    "num_new",
    [
        5,
        9,
    ],
)
def test_prompt_lookup_gives_the_greedy_image(num_new):
    model = tiny_model()
    prompt = prompts(batch=1, length=8)
    images = model.generate(prompt, prompt_lookup_num_tokens=3, do_sample=False, max_new_tokens=num_new)
    assert torch.equal(images, naive_greedy(model, prompt)[:, : 8 + num_new])


def exhaustive_best(model, ids):
    """The most probable continuation, by exhaustive search."""
    with torch.no_grad():
        total = torch.zeros(1)
        while ids.shape[1] <= model.config.n_positions:
            scores = model(ids).logits[:, -1].log_softmax(-1)
            total = (total[:, None] + scores).flatten()
            colours = torch.arange(scores.shape[1]).repeat(len(ids))[:, None]
            ids = torch.cat([ids.repeat_interleave(scores.shape[1], 0), colours], dim=1)
    return ids[total.argmax()], total.max()


def test_full_width_beam_search_finds_most_probable_image():
    model = tiny_model(vocab_size=4, n_positions=4)
    best, score = exhaustive_best(model, torch.tensor([[3]]))
    found = model.generate(
        torch.tensor([[3]]), num_beams=81, do_sample=False, return_dict_in_generate=True, output_scores=True,
        length_penalty=0.0,
    )  # fmt: skip
    assert torch.equal(found.sequences[0], best)
    assert found.sequences_scores[0].item() == pytest.approx(score.item(), abs=1e-5)


def test_sampling_follows_the_models_probabilities():
    model = tiny_model(vocab_size=5)
    prompt = torch.tensor([[4, 0, 1]])
    expected = model(prompt).logits[0, -1].softmax(-1)
    drawn = model.generate(prompt.expand(4000, -1), do_sample=True, top_k=0, max_new_tokens=1)[:, -1]
    counted = torch.bincount(drawn, minlength=4) / 4000
    assert counted.shape == (4,)
    # Five standard deviations of a proportion are at most 5 * 0.5 / sqrt(4000) = 0.04.
    assert largest_difference(counted, expected) < 0.04


def test_start_token_is_never_sampled():
    # Even by a model that loves its vector: there is no output for it. transformers' tied models can draw it.
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(0.01)  # nearly uniform
    images = model.generate(torch.full((500, 1), SOS), do_sample=True, top_k=0)
    pixels = images[:, 1:]
    assert pixels.max() == SOS - 1
    assert torch.bincount(pixels.flatten(), minlength=16).min() > 300  # of 500 expected


# --- Lengths ---


@pytest.mark.parametrize("do_sample", [True, False])
def test_without_prompt_generates_one_image_from_sos(do_sample):
    images = tiny_model().generate(do_sample=do_sample)
    assert images.shape == (1, 17)
    assert images[0, 0] == SOS


def test_without_prompt_num_return_sequences():
    images = tiny_model().generate(do_sample=True, num_return_sequences=4)
    assert images.shape == (4, 17)
    assert len(images.unique(dim=0)) > 1


def test_samples_of_a_prompt_are_adjacent():
    images = tiny_model().generate(prompts(), do_sample=True, num_return_sequences=2)
    assert images.shape == (6, 17)
    assert torch.equal(images[:, :5], prompts().repeat_interleave(2, 0))


@pytest.mark.parametrize(
    ("arguments", "length"),
    [
        ({"max_new_tokens": 3}, 8),
        ({"max_length": 9}, 9),
        ({"max_new_tokens": 12}, 17),
        ({"max_length": 17}, 17),
        ({"generation_config": GenerationConfig(max_new_tokens=2)}, 7),
        ({"generation_config": GenerationConfig(do_sample=True)}, 17),
        ({"generation_config": GenerationConfig(max_length=11)}, 11),
    ],
)
def test_lengths(arguments, length):
    assert tiny_model().generate(prompts(), **arguments).shape == (3, length)


@pytest.mark.parametrize(
    ("prompt_length", "arguments", "numbers"),
    [
        (5, {"max_new_tokens": 13}, ["18", "5", "17", "16"]),
        (5, {"max_length": 18}, ["18", "5", "17", "16"]),
        (5, {"max_length": 100000}, ["100000", "5"]),
        (17, {}, ["17", "room for 17"]),
        (18, {}, ["18", "17"]),
        (5, {"generation_config": GenerationConfig(max_new_tokens=13)}, ["18", "5"]),
    ],
)
def test_too_many_pixels_is_an_error(prompt_length, arguments, numbers):
    # The reference dies of "index out of range in self" in the middle of the image.
    prompt = torch.cat([prompts(), prompts(length=16)], dim=1)[:, :prompt_length]
    with pytest.raises(ValueError, match="this model has") as error:
        tiny_model().generate(prompt, **arguments)
    assert all(number in str(error.value) for number in numbers), str(error.value)
    assert "\n" not in str(error.value)


def test_generation_config_is_not_modified():
    config = GenerationConfig(do_sample=True)
    before = config.to_dict()
    tiny_model().generate(prompts(), generation_config=config)
    assert config.to_dict() == before


def test_a_model_that_generated_saves_and_generates_again(tmp_path):
    model = tiny_model()
    expected = model.generate(prompts(), do_sample=False)
    model.save_pretrained(tmp_path)
    assert torch.equal(
        ImageGPTForCausalImageModeling.from_pretrained(tmp_path).generate(prompts(), do_sample=False), expected
    )


# --- Prompts ---


def test_batched_prompts_equal_single_prompts():
    model = tiny_model()
    together = model.generate(prompts(), do_sample=False)
    alone = [model.generate(prompt[None], do_sample=False)[0] for prompt in prompts()]
    assert torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize("method", ["greedy", "static", "no_cache", "beam"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_prompts_padded_on_the_left(method, backend):
    """Positions count from the first real pixel, so a padded prompt continues as it does alone."""
    model = tiny_model(backend=backend)
    short = prompts(batch=1, length=3)
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.long), short], dim=1)
    ids = torch.cat([padded, prompts(batch=1, length=5)])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    images = model.generate(ids, attention_mask=mask, max_new_tokens=8, **METHODS[method])
    alone = model.generate(short, max_new_tokens=8, **METHODS[method])
    assert torch.equal(images[0, 2:], alone[0])


@pytest.mark.parametrize("name", ["inputs", "input_ids"])
def test_prompt_argument_names(name):
    images = tiny_model().generate(**{name: prompts()}, do_sample=False)
    assert torch.equal(images[:, :5], prompts())


def test_prompts_as_embeddings():
    model = tiny_model()
    embeds = model.transformer.wte(prompts())
    pixels = model.generate(inputs_embeds=embeds, do_sample=False, max_new_tokens=12)
    assert torch.equal(pixels, model.generate(prompts(), do_sample=False)[:, 5:])


def test_cross_attention_follows_the_encoder():
    model = tiny_model(add_cross_attention=True)
    encoded = torch.randn(3, 7, 32)
    images = model.generate(prompts(), encoder_hidden_states=encoded, do_sample=False)
    with torch.no_grad():
        ids = prompts()
        while ids.shape[1] <= 16:
            logits = model(ids, encoder_hidden_states=encoded, use_cache=False).logits[:, -1:]
            ids = torch.cat([ids, logits.argmax(-1)], dim=1)
    assert torch.equal(images, ids)
    assert not torch.equal(images, model.generate(prompts(), do_sample=False))


# --- Options ---


@pytest.mark.parametrize("method", ["greedy", "sampling", "beam"])
def test_repetition_penalty_with_the_start_token_in_the_prompt(method):
    # The penalty gathers scores by the ids of the prompt; the start token has none, and id 16 of 16 was out of range.
    options = {**METHODS[method], "repetition_penalty": 1.3}
    images = tiny_model().generate(prompts(), **options)
    assert images.shape == (3, 17)
    assert images[:, 1:].max() < SOS


@pytest.mark.parametrize(
    "options",
    [
        {"no_repeat_ngram_size": 2},
        {"bad_words_ids": [[3], [5]]},
        {"suppress_tokens": [3, 5]},
        {"min_p": 0.1, "do_sample": True},
        {"typical_p": 0.8, "do_sample": True},
        {"renormalize_logits": True},
        {"remove_invalid_values": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_logits_processors(options):
    images = tiny_model().generate(prompts(length=1), **options)
    assert images.shape == (3, 17)
    assert images[:, 1:].max() < SOS
    if "bad_words_ids" in options or "suppress_tokens" in options:
        assert not torch.isin(images[:, 1:], torch.tensor([3, 5])).any()


def test_custom_logits_processor():
    class OnlyEven(LogitsProcessor):
        def __call__(self, input_ids, scores):
            scores = scores.clone()
            scores[:, 1::2] = -torch.inf
            return scores

    images = tiny_model().generate(prompts(length=1), logits_processor=LogitsProcessorList([OnlyEven()]))
    assert (images[:, 1:] % 2 == 0).all()


def test_scores_and_hidden_states_are_returned():
    model = tiny_model()
    output = model.generate(
        prompts(), do_sample=False, return_dict_in_generate=True, output_logits=True, output_hidden_states=True
    )
    assert len(output.logits) == 12
    logits = torch.stack(output.logits, dim=1)
    assert largest_difference(logits, model(output.sequences[:, :-1]).logits[:, 4:]) < 1e-5
    assert output.hidden_states[0][-1].shape == (3, 5, 32)
    assert output.hidden_states[1][-1].shape == (3, 1, 32)


def test_attention_weights_are_returned():
    output = tiny_model().generate(prompts(), do_sample=False, return_dict_in_generate=True, output_attentions=True)
    assert output.attentions[0][0].shape == (3, 4, 5, 5)
    assert output.attentions[3][1].shape == (3, 4, 1, 8)


def test_same_seed_same_images():
    model = tiny_model()
    torch.manual_seed(3)
    first = model.generate(prompts(), do_sample=True)
    torch.manual_seed(3)
    assert torch.equal(model.generate(prompts(), do_sample=True), first)
    assert not torch.equal(model.generate(prompts(), do_sample=True), first)


def test_bidirectional_model_cannot_generate():
    with pytest.raises(ValueError, match="is_causal=False"):
        tiny_model(is_causal=False).generate()


# --- logits_to_keep ---


@pytest.mark.parametrize("keep", [0, 1, 5, 16, 99])
def test_logits_of_the_last_positions_only(keep):
    model = tiny_model()
    whole = model(image_ids()).logits
    expected = whole[:, -keep:] if keep else whole
    assert largest_difference(model(image_ids(), logits_to_keep=keep).logits, expected) < 1e-6


def test_logits_to_keep_by_index():
    model = tiny_model()
    whole = model(image_ids()).logits
    chosen = torch.tensor([0, 7, 3])
    assert largest_difference(model(image_ids(), logits_to_keep=chosen).logits, whole[:, chosen]) < 1e-6


def test_prefill_computes_only_last_logits():
    model = tiny_model()
    shapes = []
    model.lm_head.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    model.generate(prompts(), do_sample=False, max_new_tokens=2)
    assert shapes == [(3, 1, 16), (3, 1, 16)]
