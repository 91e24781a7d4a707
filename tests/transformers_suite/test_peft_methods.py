"""peft's adapters on every model class: training, merging, saving, and parity with transformers' ImageGPT.

`generate` with adapters is in the generation tests. Methods that are for `nn.Linear` alone (OFT, LoHa, LoKr, BOFT, HRA,
MiSS, SHiRA) know neither our projections nor those of transformers' ImageGPT, which are `Conv1D`.
"""

import pytest
import torch
from every_model import CLASSES, OLD_NAMES, SHORT_NAMES, batch_for, loss_of, main_output, model_of, step_downhill
from packaging import version
from transformers.integrations.peft import MIN_PEFT_VERSION

from helpers import image_ids, largest_difference, randomize, reference_for
from imagegpt import ImageGPTForImageClassification, ImageGPTModel

peft = pytest.importorskip("peft")

pytestmark = [
    pytest.mark.filterwarnings(OLD_NAMES),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),  # any norm but torch's own
    pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning"),  # said by the reference
]

TOO_OLD = version.parse(peft.__version__) < version.parse(MIN_PEFT_VERSION)

ALL = {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}
ONE = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
WEIGHTS = {
    "lora": lambda: peft.LoraConfig(r=2, **ALL),
    "lora-all_linear": lambda: peft.LoraConfig(r=2, target_modules="all-linear", fan_in_fan_out=True),
    "rslora": lambda: peft.LoraConfig(r=2, use_rslora=True, **ALL),
    "dora": lambda: peft.LoraConfig(r=2, use_dora=True, **ALL),
    "pissa": lambda: peft.LoraConfig(r=2, init_lora_weights="pissa", **ALL),
    "adalora": lambda: peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, **ALL),
    "ia3": lambda: peft.IA3Config(
        target_modules=["c_attn", "c_fc"], feedforward_modules=["c_fc"], fan_in_fan_out=True
    ),
    "vera": lambda: peft.VeraConfig(r=2, **ONE),
    "fourierft": lambda: peft.FourierFTConfig(n_frequency=8, **ONE),
    "norms": lambda: peft.LNTuningConfig(target_modules=["ln_1", "ln_2", "ln_f"]),
}  # fmt: skip
TASKS = {"base": "FEATURE_EXTRACTION", "generative": "CAUSAL_LM", "classifier": "SEQ_CLS"}
NUM_VIRTUAL = 3
PROMPTS = {
    "prompt": lambda task: peft.PromptTuningConfig(num_virtual_tokens=NUM_VIRTUAL, task_type=task),
    "p_tuning": lambda task: peft.PromptEncoderConfig(
        num_virtual_tokens=NUM_VIRTUAL, encoder_hidden_size=8, task_type=task
    ),
    "prefix": lambda task: peft.PrefixTuningConfig(num_virtual_tokens=NUM_VIRTUAL, task_type=task),
    "prefix-projection": lambda task: peft.PrefixTuningConfig(
        num_virtual_tokens=NUM_VIRTUAL, prefix_projection=True, encoder_hidden_size=8, task_type=task
    ),
}

QUICK = ("lora", "dora", "ia3", "norms")
WITH_WEIGHTS = pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in WEIGHTS]
)
WITH_PROMPTS = pytest.mark.parametrize("method", PROMPTS)
EVERY_CLASS = pytest.mark.parametrize("model_class", CLASSES, ids=SHORT_NAMES.values())
KINDS = pytest.mark.parametrize("kind", ["causal", pytest.param("bidirectional-no_biases", marks=pytest.mark.slow)])


def adapted(model, config):
    """The model with an adapter whose weights are all random, so that it has an effect."""
    torch.manual_seed(2)
    model = peft.get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@WITH_WEIGHTS
@EVERY_CLASS
@KINDS
def test_adapters_of_weights(model_class, kind, method, tmp_path):
    plain = model_of(model_class, kind)
    model = adapted(model_of(model_class, kind), WEIGHTS[method]())
    inputs = batch_for(plain)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert largest_difference(main_output(model, inputs), main_output(plain, inputs)) > 1e-3

    first = loss_of(model, inputs)
    first.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    step_downhill(model)
    assert loss_of(model, inputs) < first
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)

    expected = main_output(model, inputs)
    model.save_pretrained(tmp_path)
    fresh = model_of(model_class, kind)
    if method == "pissa":  # it starts by taking its share out of the weights, and saves what is left of it alone
        return
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path).eval()
    assert largest_difference(main_output(loaded, inputs), expected) < 1e-6
    merged = model.merge_and_unload()
    assert type(merged) is model_class
    assert merged.state_dict().keys() == plain.state_dict().keys()
    assert largest_difference(main_output(merged, inputs), expected) < 1e-4


@WITH_WEIGHTS
@EVERY_CLASS
def test_adapters_of_weights_compute_what_they_do_in_transformers(model_class, method):
    ours = model_of(model_class, shift_inputs=False)
    theirs = adapted(reference_for(ours), WEIGHTS[method]())
    ours = adapted(ours, WEIGHTS[method]())
    assert trained_names(ours) == trained_names(theirs)
    inputs = batch_for(model_of(model_class), labels=False)
    assert largest_difference(main_output(ours, inputs), main_output(theirs, inputs)) < 1e-4


def starts(pixels=16 - NUM_VIRTUAL):
    """Images short enough to leave positions for the virtual tokens."""
    return {"input_ids": image_ids(pixels=pixels)}


@WITH_PROMPTS
@EVERY_CLASS
def test_virtual_tokens_compute_what_they_do_in_transformers(model_class, method):
    if model_class is ImageGPTForImageClassification and "prefix" in method:
        pytest.skip("transformers' classifier takes no cache, so that peft refuses; the next test has ours")
    config = PROMPTS[method](TASKS[SHORT_NAMES[model_class]])
    ours = model_of(model_class, shift_inputs=False)
    theirs = adapted(reference_for(ours), config)
    ours = adapted(ours, config)
    randomize_alike(ours, theirs)
    inputs = starts()
    found, expected = main_output(ours, inputs), main_output(theirs, inputs)
    assert largest_difference(found, expected) < 1e-5
    mask = torch.ones(2, 13, dtype=torch.long)
    mask[1, -4:] = 0
    seen = mask.bool() if found.shape[1] == 13 else slice(None)
    if model_class is not ImageGPTForImageClassification:
        found, expected = (main_output(model, inputs, attention_mask=mask) for model in (ours, theirs))
        if found.shape[1] == 16:
            found, expected = found[:, 3:], expected[:, 3:]
            seen = mask.bool()
        assert largest_difference(found[seen], expected[seen]) < 1e-5


def randomize_alike(ours, theirs):
    """Copy the virtual tokens from one to the other."""
    randomize(ours.prompt_encoder, seed=4)
    randomize(theirs.prompt_encoder, seed=4)


@WITH_PROMPTS
@EVERY_CLASS
@KINDS
def test_virtual_tokens_train_save_and_load(model_class, kind, method, tmp_path):
    if "prefix" in method and kind != "causal":
        pytest.skip("a prefix is a cache, which a bidirectional model refuses: the next test")
    config = PROMPTS[method](TASKS[SHORT_NAMES[model_class]])
    model = adapted(model_of(model_class, kind, shift_inputs=False), config).train()
    body = {name for name in trained_names(model) if "prompt_encoder" not in name}
    assert body <= {"base_model.score.modules_to_save.default.weight"}  # peft trains a classifier's head, too
    inputs = starts()
    if model_class is ImageGPTForImageClassification:
        inputs["labels"] = torch.tensor([0, 2])
    elif model_class is not ImageGPTModel:
        inputs["labels"] = image_ids(pixels=13, sos=False)
    first = loss_of(model, inputs)
    first.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    step_downhill(model)
    assert loss_of(model, inputs) < first
    expected = main_output(model.eval(), inputs)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(model_of(model_class, kind, shift_inputs=False), tmp_path).eval()
    assert largest_difference(main_output(loaded, inputs), expected) < 1e-6


def test_a_prefix_before_a_bidirectional_model_is_refused():
    model = adapted(model_of(ImageGPTModel, "bidirectional"), PROMPTS["prefix"]("FEATURE_EXTRACTION"))
    with pytest.raises(ValueError, match="past_key_values was given to a bidirectional model"):
        model(**starts())


@EVERY_CLASS
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not_reentrant"])
def test_adapters_with_gradient_checkpointing(model_class, reentrant):
    model = adapted(model_of(model_class), WEIGHTS["lora"]()).train()
    inputs = batch_for(model_of(model_class))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model.zero_grad()
        loss_of(model, inputs).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() == trained_names(model)
    for name, expected in gradients[0].items():
        assert largest_difference(gradients[1][name], expected) < 1e-6, name


@EVERY_CLASS
def test_two_adapters_are_switched_and_disabled(model_class):
    model = model_of(model_class)
    inputs = batch_for(model)
    plain = main_output(model, inputs)
    model = adapted(model, WEIGHTS["lora"]())
    one = main_output(model, inputs)
    model.add_adapter("other", WEIGHTS["lora"]())
    model.set_adapter("other")
    assert largest_difference(main_output(model, inputs), plain) < 1e-6  # a fresh one does nothing yet
    model.set_adapter("default")
    assert largest_difference(main_output(model, inputs), one) == 0
    with model.disable_adapter():
        assert largest_difference(main_output(model, inputs), plain) < 1e-6


@EVERY_CLASS
@pytest.mark.skipif(TOO_OLD, reason=f"transformers takes adapters from peft {MIN_PEFT_VERSION} on")
def test_adapters_by_the_models_own_methods(model_class, tmp_path):
    """transformers' `add_adapter` and `load_adapter` methods of the model."""
    model = model_of(model_class)
    inputs = batch_for(model)
    model.add_adapter(peft.LoraConfig(r=2, **ALL))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    expected = main_output(model, inputs)
    model.save_pretrained(tmp_path)
    loaded = model_of(model_class)
    loaded.load_adapter(tmp_path)
    assert largest_difference(main_output(loaded, inputs), expected) < 1e-6
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    model.gradient_checkpointing_disable()
