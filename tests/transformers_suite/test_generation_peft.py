"""Generation with peft's methods, against an uncached loop over peft's `forward`."""

import pytest
import torch
from peft import (
    CPTConfig,
    IA3Config,
    LoraConfig,
    MultitaskPromptTuningConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)

from generating import PIXELS, PROMPT, generator, positions, prompts

VIRTUAL = 3
METHODS = {
    "prompt tuning": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL),
    "P-tuning": lambda: PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL, encoder_hidden_size=8
    ),
    "multitask prompt tuning": lambda: MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL, num_tasks=2
    ),
    "CPT": lambda: CPTConfig(
        task_type="CAUSAL_LM", cpt_token_ids=[1, 2, 3], cpt_mask=[1, 1, 1], cpt_tokens_type_mask=[1, 2, 3]
    ),
    "prefix tuning": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL),
    "LoRA": lambda: LoraConfig(
        task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False
    ),
    "IA3": lambda: IA3Config(
        task_type="CAUSAL_LM", target_modules=["c_attn"], feedforward_modules=[], fan_in_fan_out=True,
        init_ia3_weights=False,
    ),
}  # fmt: skip
LEARNED_PROMPTS = [name for name in METHODS if name not in ("LoRA", "IA3")]
pytestmark = [
    # peft drops the positions that `generate` hands it, and says so each time.
    pytest.mark.filterwarnings("ignore:Position ids are not supported for parameter efficient tuning"),
    # It asks transformers 5.23 for a name of before.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]


def tuned(method):
    return get_peft_model(generator(dtype=torch.float32), METHODS[method]()).eval()


def task_of(method):
    return {"task_ids": torch.tensor([0, 1])} if method == "multitask prompt tuning" else {}


@torch.no_grad()
def naive_tuned(model, method, mask=None, num_new=4):
    """Greedy search through peft's forward, without a cache."""
    ids = prompts()
    for _ in range(num_new):
        inputs = dict(task_of(method))
        if mask is not None:
            inputs["attention_mask"] = mask
            if method in ("prefix tuning", "LoRA", "IA3"):  # the others have no positions but consecutive ones
                inputs["position_ids"] = positions(mask)
        pixel = model(input_ids=ids, use_cache=False, **inputs).logits[:, -1:].argmax(-1)
        ids = torch.cat([ids, pixel], dim=1)
        mask = None if mask is None else torch.cat([mask, torch.ones_like(pixel)], dim=1)
    return ids


@pytest.mark.parametrize("mask", [None, torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])], ids=["", "padded"])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_matches_uncached_loop(method, use_cache, mask):
    model = tuned(method)
    masked = {} if mask is None else {"attention_mask": mask}
    images = model.generate(
        input_ids=prompts(), max_new_tokens=4, do_sample=False, use_cache=use_cache, **masked, **task_of(method)
    )
    assert torch.equal(images, naive_tuned(model, method, mask))
    if method == "prompt tuning" and mask is None:  # and what was learned matters
        assert not torch.equal(images, generator(dtype=torch.float32).generate(prompts(), max_new_tokens=4))


@pytest.mark.parametrize("method", METHODS)
def test_beams_and_samples(method):
    model = tuned(method)
    inputs = task_of(method) if method not in LEARNED_PROMPTS else {}
    if method == "multitask prompt tuning":
        pytest.skip("peft repeats the prompts of tasks for the images, not for their beams")
    beams = model.generate(input_ids=prompts(), max_new_tokens=4, num_beams=2, do_sample=False, **inputs)
    assert beams.shape == (2, PROMPT + 4)
    drawn = model.generate(
        input_ids=prompts(), max_new_tokens=4, do_sample=True, num_return_sequences=2, top_k=1, **inputs
    )
    assert torch.equal(drawn, naive_tuned(model, method).repeat_interleave(2, 0))


@pytest.mark.parametrize("method", LEARNED_PROMPTS)
def test_virtual_tokens_take_positions(method):
    """Without a length, all remaining positions are used; more pixels are an error before the first step."""
    model = tuned(method)
    images = model.generate(input_ids=prompts(), do_sample=False, **task_of(method))
    assert images.shape == (2, PIXELS + 1 - VIRTUAL)
    with pytest.raises(
        ValueError, match=f"^14 tokens were requested, 7 of them in the prompt, {VIRTUAL} of them virtual"
    ):
        model.generate(input_ids=prompts(), max_new_tokens=7, **task_of(method))


@pytest.mark.parametrize("method", LEARNED_PROMPTS)
def test_a_static_cache_with_virtual_tokens_is_one_sentence(method):
    """peft does not support it with any model of transformers 5."""
    with pytest.raises(ValueError, match=r'^cache_implementation="static" was given with 3 virtual tokens of peft'):
        tuned(method).generate(input_ids=prompts(), cache_implementation="static", **task_of(method))


@pytest.mark.parametrize("method", ["LoRA", "IA3"])
def test_a_static_cache_with_adapters(method):
    model = tuned(method)
    images = model.generate(input_ids=prompts(), cache_implementation="static", max_new_tokens=4, do_sample=False)
    assert torch.equal(images, naive_tuned(model, method))


def test_prefix_wins_over_empty_cache():
    """peft passes its prefix as `past_key_values`; an empty `cache` must not override it."""
    model = tuned("prefix tuning")
    prefix = model.get_prompt(2)
    empty = type(prefix)()
    base = model.get_base_model()
    both = base(prompts(), past_key_values=prefix, cache=empty).logits
    assert torch.equal(both, base(prompts(), past_key_values=model.get_prompt(2)).logits)
    assert not torch.equal(both, base(prompts()).logits)
