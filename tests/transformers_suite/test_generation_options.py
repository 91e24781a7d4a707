"""Every option of `generate`: it works, or is refused in one sentence.

`OPTIONS` has an entry for each field of transformers' GenerationConfig and `ARGUMENTS` one for each argument of its
`generate`; a test fails when a version brings others.
"""

import copy
import inspect

import pytest
import torch
from transformers import GenerationConfig
from transformers.generation import (
    CompileConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    SynthIDTextWatermarkingConfig,
    WatermarkDetector,
    WatermarkingConfig,
)
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerationMixin

from generating import COLOURS, PIXELS, PROMPT, generator, logits_after, naive, prompts
from helpers import before_transformers, reference_for
from imagegpt.model.cache import CACHE_ARGUMENT

SOS = COLOURS
END = 3  # a colour used as the end of an image
NEW = PIXELS + 1 - PROMPT
# An option by itself, as transformers' own ImageGPT honours it; the same images are asked for.
AS_TRANSFORMERS = {
    "max_length": {"max_length": 9},
    "max_new_tokens": {"max_new_tokens": 5},
    "min_length": {"min_length": 10, "eos_token_id": 14},
    "min_new_tokens": {"min_new_tokens": 6, "eos_token_id": 14},
    "early_stopping": {"early_stopping": True, "num_beams": 3, "eos_token_id": 14},
    "max_time": {"max_time": 1000.0},
    "do_sample": {"do_sample": True},
    "num_beams": {"num_beams": 3},
    "use_cache": {"use_cache": False},
    "temperature": {"do_sample": True, "temperature": 0.5},
    "top_k": {"do_sample": True, "top_k": 3},
    "top_p": {"do_sample": True, "top_p": 0.6},
    "min_p": {"do_sample": True, "min_p": 0.1},
    "top_h": {"do_sample": True, "top_h": 0.4},
    "typical_p": {"do_sample": True, "typical_p": 0.7},
    "epsilon_cutoff": {"do_sample": True, "epsilon_cutoff": 0.03},
    "eta_cutoff": {"do_sample": True, "eta_cutoff": 0.03},
    "repetition_penalty": {"repetition_penalty": 1.5},
    "length_penalty": {"num_beams": 3, "length_penalty": -2.0, "eos_token_id": 14},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "renormalize_logits": {"renormalize_logits": True, "num_beams": 2, "suppress_tokens": [14]},
    "forced_bos_token_id": {"prompt": prompts(length=1), "forced_bos_token_id": 5, "max_new_tokens": 3},
    "forced_eos_token_id": {"forced_eos_token_id": 5},
    "remove_invalid_values": {"remove_invalid_values": True},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (2, 1.5), "eos_token_id": 14},
    "suppress_tokens": {"suppress_tokens": [14, 0]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [14, 0]},
    "sequence_bias": {"sequence_bias": {(14,): -9.0, (0, 0): -9.0}},
    "bad_words_ids": {"bad_words_ids": [[14], [0, 0]]},
    "guidance_scale": {"guidance_scale": 2.0},
    "num_return_sequences": {"do_sample": True, "num_return_sequences": 2},
    "pad_token_id": {"eos_token_id": 14, "pad_token_id": 7},
    "eos_token_id": {"eos_token_id": [14, 9]},
    "num_assistant_tokens": {"prompt": prompts(1), "assistant_model": "self", "num_assistant_tokens": 2},
    "assistant_confidence_threshold": {
        "prompt": prompts(1), "assistant_model": "self", "assistant_confidence_threshold": 0.3,
    },
    "prompt_lookup_num_tokens": {"prompt": prompts(1), "prompt_lookup_num_tokens": 2, "max_new_tokens": 5},
    "max_matching_ngram_size": {
        "prompt": prompts(1), "prompt_lookup_num_tokens": 2, "max_matching_ngram_size": 1, "max_new_tokens": 5,
    },
    "assistant_ensemble_weight": {
        "prompt": prompts(1), "assistant_model": "self", "assistant_ensemble_weight": 0.5, "do_sample": True,
    },
}  # fmt: skip
# Options without effect in transformers, or only with one above: the greedy image.
NO_EFFECT = {
    "decoder_start_token_id": {"decoder_start_token_id": 5},  # of encoder-decoder models
    "bos_token_id": {"bos_token_id": 5},  # the prompt begins with the start token anyway
    "low_memory": {"low_memory": True},  # of contrastive search, which left transformers
    "diversity_penalty": {"diversity_penalty": 1.0},  # of group beam search, likewise
    "num_assistant_tokens_schedule": {"num_assistant_tokens_schedule": "constant"},
    "assistant_lookbehind": {"assistant_lookbehind": 5},  # of assistants with another tokenizer
    "target_lookbehind": {"target_lookbehind": 5},
    "is_assistant": {"is_assistant": False},
    "compile_config": {"compile_config": CompileConfig()},  # on a GPU, with a static cache
    "disable_compile": {"disable_compile": True},
}
REFUSED = {
    "stop_strings": ({"stop_strings": "sky"}, r"^stop_strings was given: pixels are not text"),
    "token_healing": ({"token_healing": True}, r"^token_healing was given: pixels are not text"),
    "use_mtp": ({"use_mtp": True}, r"^use_mtp was given: this model has no multi-token prediction heads"),
    "speculation_type": ({"speculation_type": "dflash"}, r"^speculation_type was given: ImageGPT has no drafting"),
    "penalty_alpha": ({"penalty_alpha": 0.6, "top_k": 4}, "trust_remote_code"),
    "dola_layers": ({"dola_layers": "low"}, "trust_remote_code"),
    "num_beam_groups": ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}, "trust_remote_code"),
    "constraints": ({"num_beams": 2, "constraints": [object()]}, "trust_remote_code"),
    "force_words_ids": ({"num_beams": 2, "force_words_ids": [[3]]}, "trust_remote_code"),
}
# Options with tests of their own, here or in the files of this folder.
ELSEWHERE = {
    "cache_implementation": "test_generation_inputs.py",
    "cache_config": "test_generation_inputs.py",
    "max_cache_len": "test_generation_inputs.py",
    "prefill_chunk_size": "test_generation_inputs.py",
    "output_attentions": "test_generation_modes.py",
    "output_hidden_states": "test_generation_modes.py",
    "output_scores": "test_generation_modes.py",
    "output_logits": "test_generation_modes.py",
    "return_dict_in_generate": "test_generation_modes.py",
    "assistant_early_exit": "test_generation_modes.py",
    "encoder_repetition_penalty": "test_encoder_repetition_penalty",
    "encoder_no_repeat_ngram_size": "test_encoder_no_repeat_ngram_size",
    "watermarking_config": "test_watermark",
    "continuous_batching_config": "test_generation_inputs.py",  # continuous batching is refused there
}
ARGUMENTS = {
    "inputs": "test_generation_inputs.py",
    "generation_config": "test_arguments_by_position",
    "logits_processor": "test_arguments_by_position",
    "stopping_criteria": "test_arguments_by_position",
    "prefix_allowed_tokens_fn": "test_prefix_allowed_tokens",
    "synced_gpus": "test_synced_gpus",
    "assistant_model": "test_generation_modes.py",
    "streamer": "test_streamer",
    "negative_prompt_ids": "test_guidance_by_negative_prompts",
    "negative_prompt_attention_mask": "test_guidance_by_negative_prompts",
    "custom_generate": "test_custom_generate",
    "kwargs": "test_typos",
}


def test_options_are_complete():
    known = AS_TRANSFORMERS.keys() | NO_EFFECT.keys() | REFUSED.keys() | ELSEWHERE.keys()
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")} - {"transformers_version"}
    assert fields - known == set()


def test_arguments_are_complete():
    assert set(inspect.signature(GenerationMixin.generate).parameters) - {"self"} - ARGUMENTS.keys() == set()


@pytest.mark.parametrize("name", AS_TRANSFORMERS)
def test_as_in_transformers_own_imagegpt(name):
    if not hasattr(GenerationConfig(), name):
        pytest.skip("this version of transformers has no such option")
    if name == "repetition_penalty" and before_transformers("5.18"):
        pytest.skip("before 5.18 it fails at the start token; ours is in test_repetition_penalty")
    options = dict(AS_TRANSFORMERS[name])
    prompt, model = options.pop("prompt", prompts()), generator(dtype=torch.float32)
    if not {"max_length", "max_new_tokens"} & options.keys():
        options["max_new_tokens"] = NEW
    images = []
    for each in (model, reference_for(model)):
        mine = {k: each if isinstance(x, str) and x == "self" else x for k, x in options.items()}
        torch.manual_seed(1)
        images.append(each.generate(prompt, **mine))
    assert torch.equal(*images)
    # And the option changes something, where it alone can.
    if name in ("bad_words_ids", "suppress_tokens", "sequence_bias", "repetition_penalty", "guidance_scale"):
        assert not torch.equal(images[0], model.generate(prompt, do_sample=False))


@pytest.mark.parametrize("name", NO_EFFECT)
def test_without_effect_as_in_transformers(name):
    if not hasattr(GenerationConfig(), name):
        pytest.skip("this version of transformers has no such option")
    model = generator()
    assert torch.equal(model.generate(prompts(), do_sample=False, **NO_EFFECT[name]), naive(model, prompts()))


@pytest.mark.parametrize("by", ["argument", "config", "model"])
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, by):
    if not hasattr(GenerationConfig(), name):
        pytest.skip("this version of transformers has no such option")
    options, message = REFUSED[name]
    model = generator()
    if by == "config":
        options = {"generation_config": GenerationConfig(**options)}
    if by == "model":
        model.generation_config.update(**options)
        options = {}
    with pytest.raises(ValueError, match=message) as error:
        model.generate(prompts(), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["tokenizer", "assistant_tokenizer"])
def test_tokenizers_are_refused(name):
    with pytest.raises(ValueError, match=f"^{name} was given: pixels are not text"):
        generator().generate(prompts(), **{name: object()})


@pytest.mark.parametrize("pixels", [torch.zeros(1, 3, 4, 4), [[0.0]]], ids=["tensor", "list"])
@pytest.mark.parametrize("with_ids", [True, False])
def test_pixel_values_are_refused(pixels, with_ids):
    with pytest.raises(ValueError, match=r"^pixel_values was given: this model reads colour ids: give the start token"):
        generator().generate(*((prompts(),) if with_ids else ()), pixel_values=pixels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forced_bos_token_id": SOS}, r"^forced_bos_token_id is 16: this model has colours 0 to 15$"),
        ({"forced_eos_token_id": [3, 16]}, r"^forced_eos_token_id is 16"),
        ({"exponential_decay_length_penalty": (2, 1.5)}, r"^exponential_decay_length_penalty was given without eos"),
        ({"exponential_decay_length_penalty": (2, 1.5), "eos_token_id": SOS}, r"^eos_token_id is 16"),
        ({"bad_words_ids": [[99]]}, "vocabulary size is 17"),
        ({"max_new_tokens": 0}, "must be greater than 0"),
    ],
)
def test_forced_token_must_be_a_color(options, message):
    with pytest.raises(ValueError, match=message):
        generator().generate(prompts(), **options)


def test_typos():
    with pytest.raises(ValueError, match="temperatures"):
        generator().generate(prompts(), temperatures=1.0)


@pytest.mark.parametrize(("name", "value"), [("vocab_size", 9), ("vocab_size", 33), ("n_positions", 8)])
def test_an_assistant_of_another_palette_or_size_is_one_sentence(name, value):
    helper = generator(**{name: value})
    with pytest.raises(ValueError, match=f"^assistant_model has {name}={value}, this model"):
        generator().generate(prompts(1), assistant_model=helper)


# --- Options that take the start token for a colour in transformers ---


def test_repetition_penalty():
    """It divides the scores of previous colours, and skips the start token, which has none."""
    model = generator()

    def rule(ids, logits):
        penalized = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, ids[:, 1:], True)
        return torch.where(penalized, torch.where(logits < 0, logits * 1.5, logits / 1.5), logits)

    images = model.generate(prompts(), repetition_penalty=1.5, do_sample=False)
    assert torch.equal(images, naive(model, prompts(), rule=rule))
    assert not torch.equal(images, naive(model, prompts()))


def test_encoder_repetition_penalty():
    """It divides the scores of the prompt's colours, and skips the start token, which has none."""
    model = generator()

    def rule(ids, logits):
        rewarded = torch.zeros_like(logits, dtype=torch.bool)
        rewarded.scatter_(1, prompts()[:, 1:], True)
        return torch.where(rewarded, torch.where(logits < 0, logits / 3.0, logits * 3.0), logits)

    images = model.generate(prompts(), encoder_repetition_penalty=3.0, do_sample=False)
    assert torch.equal(images, naive(model, prompts(), rule=rule))
    assert not torch.equal(images, naive(model, prompts()))


def test_encoder_no_repeat_ngram_size():
    model = generator()
    images = model.generate(prompts(), encoder_no_repeat_ngram_size=1, do_sample=False)
    expected = naive(model, prompts(), rule=lambda ids, x: x.scatter(1, prompts()[:, 1:], -torch.inf))
    assert torch.equal(images, expected)


@pytest.mark.parametrize(
    "length",
    [
        pytest.param(
            1,
            marks=pytest.mark.skipif(
                before_transformers("5.18"),
                reason="transformers before 5.18 ignores a bias whose colour follows all the tokens so far",
            ),
        ),
        PROMPT,
    ],
)
def test_biases_that_name_the_start_token(length):
    """Forbidding the start token has no effect; a colour after it is forbidden for the first pixel."""
    model = generator()
    prompt = prompts(length=length)
    first = int(naive(model, prompt)[0, 1])
    images = model.generate(prompt, bad_words_ids=[[SOS], [SOS, first]], do_sample=False)

    def rule(ids, logits):
        return logits.index_fill(1, torch.tensor([first]), -torch.inf) if ids.shape[1] == 1 else logits

    assert torch.equal(images, naive(model, prompt, rule=rule))


def test_prefix_allowed_tokens():
    model = generator()
    images = model.generate(prompts(), prefix_allowed_tokens_fn=lambda row, ids: [1, 2, SOS], do_sample=False)
    allowed = torch.full((1, COLOURS), -torch.inf).index_fill(1, torch.tensor([1, 2]), 0.0)
    assert torch.equal(images, naive(model, prompts(), rule=lambda ids, logits: logits + allowed))


@pytest.mark.parametrize("scheme", ["lefthash", "selfhash"])
@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"num_beams": 2}, marks=pytest.mark.slow),
    ],
    ids=["sampling", "greedy", "beams"],
)
def test_watermark(scheme, options):
    """transformers' detector, which includes the start token, finds it."""
    model = generator(n_positions=60)
    config = WatermarkingConfig(bias=9.0, seeding_scheme=scheme)
    images = model.generate(prompts(), watermarking_config=config, **options)
    assert images[:, 1:].max() < COLOURS
    known = copy.copy(model.config)
    known.bos_token_id = SOS  # without one the detector fails, whatever the model
    detector = WatermarkDetector(model_config=known, device="cpu", watermarking_config=config)
    assert detector(images[:, PROMPT:]).all()
    assert not detector(model.generate(prompts(), do_sample=True)[:, PROMPT:]).any()


def test_watermark_of_synthid():
    model = generator(dtype=torch.float32)
    options = {
        "watermarking_config": SynthIDTextWatermarkingConfig(keys=[1, 2, 3], ngram_len=3),
        "do_sample": True,
        "max_new_tokens": NEW,
    }
    images = []
    for each in (model, reference_for(model)):
        torch.manual_seed(1)
        images.append(each.generate(prompts(), **options))
    assert torch.equal(*images)


# --- Logits processors with other generation modes ---


@pytest.mark.parametrize(
    "way",
    [{"num_beams": 2}, {"prompt_lookup_num_tokens": 2}, {"assistant_early_exit": 1}],
    ids=lambda way: next(iter(way)),
)
@pytest.mark.parametrize(
    "rule",
    [{"guidance_scale": 2.0}, {"watermarking_config": SynthIDTextWatermarkingConfig(keys=[1, 2], ngram_len=3)}],
    ids=lambda rule: next(iter(rule)),
)
def test_stateful_processors_are_refused_with_rollback(rule, way):
    """In transformers guidance is silently wrong: its cache keeps rejected drafts and the old beam order."""
    with pytest.raises(ValueError, match=r"cannot roll back, drop either$"):
        generator().generate(prompts(1), **rule, **way)


RULES = {
    "bad_words_ids": {"bad_words_ids": [[14], [0, 0]]},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 3.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "repetition_penalty": {"repetition_penalty": 1.5},
    "suppress_tokens": {"suppress_tokens": [14, 0]},
    "watermark": {"watermarking_config": WatermarkingConfig(bias=2.5)},
    "custom": {"logits_processor": LogitsProcessorList()},
}


class FewColours(LogitsProcessor):
    """A custom processor that knows the number of colours."""

    def __call__(self, input_ids, scores):
        return scores + torch.linspace(0, 2, COLOURS)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("way", ["lookup", "model", "first block"])
def test_processors_with_assisted_decoding(rule, way):
    """The same image as without assistance: forbidden drafts are rejected."""
    model = generator()
    options = dict(RULES[rule])
    if rule == "custom":
        options["logits_processor"] = LogitsProcessorList([FewColours()])
    prompt = torch.tensor([[SOS, 3, 14, 0, 3, 14]])
    expected = model.generate(prompt, do_sample=False, **options)
    ways = {
        "lookup": {"prompt_lookup_num_tokens": 3},
        "model": {"assistant_model": generator(seed=1)},
        "first block": {"assistant_early_exit": 1},
    }
    assert torch.equal(model.generate(prompt, do_sample=False, **options, **ways[way]), expected)


# --- Arguments ---


def test_arguments_by_position():
    """In transformers' order: ids, configuration, processors, criteria."""

    class UntilSeven(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((len(input_ids),), input_ids.shape[1] >= 7)

    model = generator()
    config = GenerationConfig(do_sample=False, repetition_penalty=1.5)
    images = model.generate(
        prompts(), config, LogitsProcessorList([FewColours()]), StoppingCriteriaList([UntilSeven()])
    )
    expected = model.generate(prompts(), config, logits_processor=LogitsProcessorList([FewColours()]))
    assert torch.equal(images, expected[:, :7])
    assert expected.shape == (2, PIXELS + 1)
    assert not torch.equal(expected, naive(model, prompts()))


def test_a_configuration_without_a_length_makes_whole_images_without_a_warning(transformers_log):
    model = generator()
    assert model.generate(prompts(), GenerationConfig(do_sample=False)).shape == (2, PIXELS + 1)
    assert not [message for message in transformers_log if "deprecated" in message]


def test_a_cache_under_its_old_name_is_no_reason_for_a_warning():
    model = generator()
    past = model(prompts()[:, :-1]).get(CACHE_ARGUMENT)
    assert torch.equal(model.generate(prompts(), past_key_values=past, do_sample=False), naive(model, prompts()))


def test_synced_gpus():
    model = generator()
    assert torch.equal(model.generate(prompts(), synced_gpus=False, do_sample=False), naive(model, prompts()))


def test_streamer():
    class Keep(BaseStreamer):
        def __init__(self):
            self.ids, self.ended = [], False

        def put(self, value):
            self.ids.append(value.reshape(1, -1))

        def end(self):
            self.ended = True

    for options in ({}, {"prompt_lookup_num_tokens": 2}):
        streamer, model = Keep(), generator()
        image = model.generate(prompts(1), streamer=streamer, do_sample=False, **options)
        assert torch.equal(torch.cat(streamer.ids, dim=1), image)
        assert streamer.ended


@pytest.mark.parametrize(
    "options", [{}, {"num_return_sequences": 2, "do_sample": True, "top_k": 1}], ids=["one", "two"]
)
def test_guidance_by_negative_prompts(options):
    """Negative prompts; both samples of a prompt use its negative prompt."""
    model = generator()
    negative = prompts(length=3, seed=8)
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    images = model.generate(
        prompts(), guidance_scale=2.0, negative_prompt_ids=negative, negative_prompt_attention_mask=mask,
        max_new_tokens=6, use_cache=True, **{"do_sample": False, **options},
    )  # fmt: skip

    def rule(ids, logits):
        away = torch.cat([negative, ids[:, PROMPT:]], dim=1)
        seen = torch.cat([mask, torch.ones_like(ids[:, PROMPT:])], dim=1)
        other = model(away, attention_mask=seen, use_cache=False).logits[:, -1].float().log_softmax(-1)
        return 2.0 * (logits.log_softmax(-1) - other) + other

    expected = naive(model, prompts(), num_new=6, rule=rule)
    assert torch.equal(images, expected.repeat_interleave(options.get("num_return_sequences", 1), 0))


def test_custom_generate():
    def first_only(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
        return torch.cat([input_ids, logits_after(model, input_ids).argmax(-1, keepdim=True)], dim=1)

    model = generator()
    images = model.generate(prompts(), custom_generate=first_only, do_sample=False)
    assert torch.equal(images, naive(model, prompts(), num_new=1))
