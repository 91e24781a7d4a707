"""Every generation mode of transformers 5 against the reference, and all additional outputs."""

import pytest
import torch
from transformers.generation import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from transformers.generation.utils import GenerationMixin

from generating import (
    COLOURS,
    EAGER_AND_SDPA,
    EVERY_KIND,
    PIXELS,
    PROMPT,
    generator,
    inputs_of,
    naive,
    naive_beams,
    prompts,
    scores_of,
)
from helpers import largest_difference, reference_for
from imagegpt import ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTModel
from imagegpt.model.cache import CACHE_ARGUMENT

NEW = PIXELS + 1 - PROMPT
EVERYTHING = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_hidden_states": True,
    "output_attentions": True,
}


def test_only_the_generative_model_generates():
    assert issubclass(ImageGPTForCausalImageModeling, GenerationMixin)
    assert ImageGPTForCausalImageModeling.can_generate()
    for model_class in (ImageGPTModel, ImageGPTForImageClassification):
        assert not model_class.can_generate()
        assert not hasattr(model_class, "generate")


@EVERY_KIND
@EAGER_AND_SDPA
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy(kind, backend, use_cache):
    model, inputs = generator(kind, backend), inputs_of(kind)
    images = model.generate(prompts(), do_sample=False, use_cache=use_cache, **inputs)
    assert torch.equal(images, naive(model, prompts(), **inputs))


@EVERY_KIND
def test_without_a_prompt(kind):
    model, inputs = generator(kind), inputs_of(kind, batch=1)
    image = model.generate(do_sample=False, **inputs)
    assert torch.equal(image, naive(model, torch.tensor([[COLOURS]]), **inputs))


def test_greedy_images_are_those_of_transformers_own_imagegpt():
    model = generator(dtype=torch.float32)
    images = model.generate(prompts(), do_sample=False)
    assert torch.equal(images, reference_for(model).generate(prompts(), do_sample=False, max_new_tokens=NEW))


@EVERY_KIND
def test_sampling_draws_from_the_models_probabilities(kind):
    """The same samples as from the reference's probabilities, for each rule."""
    model, inputs = generator(kind), inputs_of(kind)
    torch.manual_seed(5)
    images = model.generate(prompts(), do_sample=True, top_k=5, temperature=0.7, **inputs)
    torch.manual_seed(5)

    def draw(ids, logits):
        warm = logits / 0.7
        warm = warm.masked_fill(warm < warm.topk(5).values[:, -1:], -torch.inf)
        drawn = torch.multinomial(warm.softmax(-1), 1)
        return torch.zeros_like(logits).scatter(1, drawn, 1.0)

    assert torch.equal(images, naive(model, prompts(), rule=draw, **inputs))


def test_sampled_images_are_those_of_transformers_own_imagegpt():
    model = generator(dtype=torch.float32)
    options = {"do_sample": True, "top_p": 0.9, "num_return_sequences": 3, "max_new_tokens": NEW}
    images = []
    for each in (model, reference_for(model)):
        torch.manual_seed(2)
        images.append(each.generate(prompts(), **options))
    assert torch.equal(*images)
    assert images[0].shape == (6, PIXELS + 1)
    assert torch.equal(images[0][:, :PROMPT], prompts().repeat_interleave(3, 0))


@EVERY_KIND
@pytest.mark.parametrize("use_cache", [True, False])
def test_beams(kind, use_cache):
    model, inputs = generator(kind), inputs_of(kind)
    found = model.generate(
        prompts(), num_beams=3, num_return_sequences=3, do_sample=False, length_penalty=0.0, use_cache=use_cache,
        return_dict_in_generate=True, output_scores=True, **inputs,
    )  # fmt: skip
    for i, prompt in enumerate(prompts()):
        mine = {name: x[i : i + 1] for name, x in inputs.items()}
        beams, totals = naive_beams(model, prompt[None], 3, NEW, **mine)
        assert torch.equal(found.sequences[3 * i : 3 * i + 3], beams)
        assert largest_difference(found.sequences_scores[3 * i : 3 * i + 3], totals) < 1e-4


def test_sampled_beams_are_those_of_transformers_own_imagegpt():
    model = generator(dtype=torch.float32)
    images = []
    for each in (model, reference_for(model)):
        torch.manual_seed(4)
        images.append(each.generate(prompts(), num_beams=3, do_sample=True, top_k=6, max_new_tokens=NEW))
    assert torch.equal(*images)
    assert not torch.equal(images[0], model.generate(prompts(), num_beams=3, do_sample=False))


@EVERY_KIND
@pytest.mark.parametrize("helper", ["same", "random", "first block"])
def test_assisted_decoding_gives_the_greedy_image(kind, helper):
    model, inputs = generator(kind), inputs_of(kind, batch=1)
    options = {
        "same": {"assistant_model": model},
        "random": {"assistant_model": generator(kind, seed=1)},
        "first block": {"assistant_early_exit": 1},
    }[helper]
    calls = []
    model.transformer.h[0].register_forward_hook(lambda *args: calls.append(args[0]))
    image = model.generate(prompts(1), do_sample=False, **options, **inputs)
    assert torch.equal(image, naive(model, prompts(1), **inputs))
    assert model.config.n_layer == 2


def test_early_exit_drafts_with_the_first_blocks():
    """Regression, and a bug of transformers' ImageGPT: all blocks ran, and the cache had too few layers."""
    model = generator()
    runs = [[], []]
    for block, counted in zip(model.transformer.h, runs, strict=True):
        block.register_forward_hook(lambda *args, counted=counted: counted.append(1))
    model.generate(prompts(1), do_sample=False, assistant_early_exit=1)
    assert len(runs[0]) > len(runs[1]) > 0


@pytest.mark.slow
def test_assisted_sampling_follows_the_models_probabilities():
    model, helper = generator(), generator(seed=1)
    expected = model(prompts(1)).logits[0, -1].softmax(-1)
    drawn = torch.cat(
        [
            model.generate(prompts(1), assistant_model=helper, do_sample=True, top_k=0, max_new_tokens=2)[:, PROMPT]
            for _ in range(300)
        ]
    )
    # Five standard deviations of a proportion are at most 5 * 0.5 / sqrt(300) = 0.15.
    assert largest_difference(torch.bincount(drawn, minlength=COLOURS) / 300, expected) < 0.15


@EVERY_KIND
def test_prompt_lookup_gives_the_greedy_image(kind):
    model, inputs = generator(kind), inputs_of(kind, batch=1)
    prompt = torch.tensor([[16, 3, 5, 3, 5, 3]])  # repeats itself, so that there is something to look up
    image = model.generate(prompt, prompt_lookup_num_tokens=2, do_sample=False, **inputs)
    assert torch.equal(image, naive(model, prompt, **inputs))


def test_prompt_lookup_never_proposes_past_the_end_of_an_image():
    """An "end of image" colour within the text to copy ends the proposal."""
    model = generator()
    prompt = torch.tensor([[16, 3, 5, 7, 3]])
    image = naive(model, prompt)
    end = int(image[0, 7])
    stopped = model.generate(prompt, prompt_lookup_num_tokens=4, do_sample=False, eos_token_id=end)
    first = 5 + image[0, 5:].tolist().index(end)
    assert torch.equal(stopped, image[:, : first + 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty_alpha": 0.6, "top_k": 4}, "Contrastive Search requires"),
        ({"dola_layers": "low"}, "Dola Generation requires"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}, "Group Beam Search requires"),
        ({"num_beams": 3, "force_words_ids": [[3]]}, "Constrained Beam Search requires"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_modes_that_left_transformers_are_refused(options, message):
    """transformers 5 has moved them to repositories on its hub, for every model."""
    with pytest.raises(ValueError, match=message):
        generator().generate(prompts(), **options)


# --- What can be had besides the ids ---


def check_outputs(output, batch, num_beams=1, use_cache=True, returned=1):
    """Shapes of all outputs, as in transformers' generic test; the logits lack the start token."""
    rows = batch * max(num_beams, returned)
    assert output.sequences.shape == (batch * returned, PIXELS + 1)
    for steps in (output.scores, output.logits):
        assert [tuple(step.shape) for step in steps] == [(rows, COLOURS)] * NEW
    assert len(output.attentions) == len(output.hidden_states) == NEW
    for step, (weights, states) in enumerate(zip(output.attentions, output.hidden_states, strict=True)):
        seen = PROMPT + step
        fed = 1 if use_cache and step else seen
        assert [tuple(x.shape) for x in weights] == [(rows, 2, fed, seen)] * 2
        assert [tuple(x.shape) for x in states] == [(rows, fed, 16)] * 3
    cache = output.get(CACHE_ARGUMENT)
    if not use_cache:
        assert cache is None
        return
    cache = getattr(cache, "self_attention_cache", cache)
    assert [tuple(layer.keys.shape) for layer in cache.layers] == [(rows, 2, PIXELS, 8)] * 2
    assert [tuple(layer.values.shape) for layer in cache.layers] == [(rows, 2, PIXELS, 8)] * 2


@EVERY_KIND
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("do_sample", [True, False])
def test_outputs_without_beams(kind, use_cache, do_sample):
    model, inputs = generator(kind, "eager"), inputs_of(kind)
    returned = 2 if do_sample else 1
    output = model.generate(
        prompts(), do_sample=do_sample, num_return_sequences=returned, use_cache=use_cache, **EVERYTHING, **inputs
    )
    assert isinstance(output, GenerateDecoderOnlyOutput)
    check_outputs(output, 2, use_cache=use_cache, returned=returned)
    repeated = {name: x.repeat_interleave(returned, 0) for name, x in inputs.items()}
    expected = model(output.sequences[:, :-1], **repeated).logits[:, PROMPT - 1 :].float()
    assert largest_difference(torch.stack(output.logits, dim=1), expected) < 1e-5


@EVERY_KIND
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("do_sample", [True, False])
def test_outputs_of_beams(kind, use_cache, do_sample):
    model, inputs = generator(kind, "eager"), inputs_of(kind)
    output = model.generate(
        prompts(), do_sample=do_sample, num_beams=3, num_return_sequences=2, use_cache=use_cache, **EVERYTHING, **inputs
    )
    assert isinstance(output, GenerateBeamDecoderOnlyOutput)
    assert output.sequences.shape == (4, PIXELS + 1)
    assert output.beam_indices.shape == (4, NEW)
    output.sequences = output.sequences[::2]
    check_outputs(output, 2, num_beams=3, use_cache=use_cache)


@pytest.mark.parametrize(
    "options", [{"assistant_model": "same"}, {"prompt_lookup_num_tokens": 2}], ids=["model", "lookup"]
)
def test_outputs_of_assisted_decoding(options):
    """The same as with greedy decoding, although several pixels are accepted at once."""
    model = generator(backend="eager")
    options = {name: model if x == "same" else x for name, x in options.items()}
    output = model.generate(prompts(1), do_sample=False, **EVERYTHING, **options)
    check_outputs(output, 1)
    greedy = model.generate(prompts(1), do_sample=False, **EVERYTHING)
    for name in ("scores", "logits"):
        assert largest_difference(torch.stack(output[name]), torch.stack(greedy[name])) < 1e-6


# --- Scores of the sampled pixels ---


@EVERY_KIND
@pytest.mark.parametrize("do_sample", [True, False])
def test_transition_scores_of_every_image_of_a_batch(kind, do_sample):
    """transformers indexes scores in rows of `vocab_size`, including the start token, which they lack."""
    model, inputs = generator(kind), inputs_of(kind, batch=3)
    output = model.generate(
        prompts(3), do_sample=do_sample, top_k=0, return_dict_in_generate=True, output_scores=True, **inputs
    )
    scores = model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
    assert largest_difference(scores, scores_of(model, output.sequences, PROMPT, **inputs)) < 1e-5
    raw = model.compute_transition_scores(output.sequences, output.scores)
    picked = torch.stack(output.scores, 1).gather(-1, output.sequences[:, PROMPT:, None])[..., 0]
    assert torch.equal(raw, picked)


@EVERY_KIND
def test_transition_scores_of_beams_add_up_to_the_scores_of_the_images(kind):
    model, inputs = generator(kind), inputs_of(kind)
    found = model.generate(
        prompts(), num_beams=3, num_return_sequences=2, do_sample=False, return_dict_in_generate=True,
        output_scores=True, **inputs,
    )  # fmt: skip
    steps = model.compute_transition_scores(found.sequences, found.scores, found.beam_indices)
    repeated = {name: x.repeat_interleave(2, 0) for name, x in inputs.items()}
    assert largest_difference(steps, scores_of(model, found.sequences, PROMPT, **repeated)) < 1e-5
    assert largest_difference(steps.sum(1) / NEW, found.sequences_scores) < 1e-5


# --- In training mode ---


@pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing(_enable|_disable)?. is deprecated:FutureWarning")
@EVERY_KIND
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 2}, {"cache_implementation": "static"}], ids=["greedy", "beams", "static"]
)
def test_generating_in_the_middle_of_training_with_gradient_checkpointing(kind, options):
    model, inputs = generator(kind), inputs_of(kind)
    expected = model.generate(prompts(), do_sample=False, **options, **inputs)
    model.train()
    model.gradient_checkpointing_enable()
    assert torch.equal(model.generate(prompts(), do_sample=False, **options, **inputs), expected)
    assert model.training
    assert model.is_gradient_checkpointing
    with pytest.raises(ValueError, match="while gradient checkpointing"):  # with gradients there is still no cache
        model(prompts(), past_key_values=(), **inputs)
