"""Training on every model class: gradients, checkpointing and transformers' Trainer, from `ModelTesterMixin`."""

import pytest
import torch
from every_model import (
    EVERY_CLASS,
    EVERY_MODEL,
    EVERY_MODEL_PARTLY_SLOW,
    OLD_NAMES,
    batch_for,
    gradients_of,
    loss_of,
    main_output,
    model_of,
    step_downhill,
)
from transformers import Trainer, TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer

from helpers import image_ids, largest_difference
from imagegpt import ImageGPTForCausalImageModeling, ImageGPTForImageClassification

pytestmark = pytest.mark.filterwarnings(OLD_NAMES)


# --- Gradients ---


@EVERY_MODEL
def test_every_weight_has_a_gradient_and_a_step_lowers_the_loss(model_class, kind):
    model = model_of(model_class, kind).train()
    inputs = batch_for(model)
    loss, gradients = gradients_of(model, inputs)
    for name, parameter in model.named_parameters():
        assert name in gradients, name
        assert gradients[name].abs().sum() > 0, name
        assert gradients[name].isfinite().all(), name
        assert gradients[name].dtype == parameter.dtype
    step_downhill(model)
    assert loss_of(model, inputs) < loss


# --- Gradient checkpointing ---


def switch_on(model, reentrant):
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})


@EVERY_MODEL
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not_reentrant"])
def test_checkpointing_changes_neither_loss_nor_gradients(model_class, kind, reentrant):
    dropout = {"resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2}
    model = model_of(model_class, kind, **dropout).train()
    inputs = batch_for(model)
    torch.manual_seed(1)
    expected_loss, expected = gradients_of(model, inputs)
    switch_on(model, reentrant)
    calls = []
    model.base_model.h[1].ln_1.register_forward_hook(lambda *args: calls.append(1))
    torch.manual_seed(1)
    loss, found = gradients_of(model, inputs)
    assert len(calls) == 2  # forwards, and once more on the way back
    assert torch.equal(loss, expected_loss)
    assert found.keys() == expected.keys()
    assert all(largest_difference(found[name], expected[name]) < 1e-6 for name in expected)


@EVERY_CLASS
def test_checkpointing_is_switched_on_and_off_everywhere(model_class):
    model = model_of(model_class)
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert len(blocks) == 2
    switched = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    for wanted in (True, False):
        model.gradient_checkpointing_enable() if wanted else model.gradient_checkpointing_disable()
        assert model.is_gradient_checkpointing is wanted
        assert all(module.gradient_checkpointing is wanted for module in switched)


@EVERY_CLASS
def test_checkpointing_asked_for_by_an_old_configuration(model_class):
    model = model_of(model_class)
    model.config.gradient_checkpointing = True
    assert model_class(model.config).is_gradient_checkpointing


@EVERY_MODEL_PARTLY_SLOW
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not_reentrant"])
def test_checkpointing_with_frozen_weights_and_inputs_that_want_gradients(model_class, kind, reentrant):
    """As adapters need it: gradients flow through a frozen model to its inputs."""
    model = model_of(model_class, kind).train()
    inputs = batch_for(model)
    model.requires_grad_(False)
    trained = model.base_model.h[0].attn.c_attn.weight.requires_grad_(True)
    _, expected = gradients_of(model, inputs)
    switch_on(model, reentrant)  # which lets the embeddings want gradients, too
    assert model.get_input_embeddings()(image_ids()).requires_grad
    _, found = gradients_of(model, inputs)
    assert found.keys() == expected.keys() == {next(n for n, p in model.named_parameters() if p is trained)}
    assert all(largest_difference(found[name], expected[name]) < 1e-6 for name in expected)


@EVERY_CLASS
def test_inputs_that_want_gradients_are_switched_on_and_off(model_class):
    model = model_of(model_class).requires_grad_(False)
    model.enable_input_require_grads()
    assert main_output(model, batch_for(model)).requires_grad
    model.disable_input_require_grads()
    assert not main_output(model, batch_for(model)).requires_grad


# --- Trainer ---


class Images(torch.utils.data.Dataset):
    """Eight images with labels for either head."""

    def __init__(self, model):
        self.whole = batch_for(model, batch=8)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {name: tensor[index] for name, tensor in self.whole.items()}


def trainer_for(model, folder, **options):
    arguments = TrainingArguments(
        output_dir=folder, per_device_eval_batch_size=3, learning_rate=1e-3, logging_steps=1, report_to=[],
        use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
        **{"save_strategy": "no", "per_device_train_batch_size": 4, **options},
    )  # fmt: skip
    return Trainer(model=model, args=arguments, train_dataset=Images(model), eval_dataset=Images(model))


HEADS = pytest.mark.parametrize(
    "model_class", [ImageGPTForCausalImageModeling, ImageGPTForImageClassification], ids=["generative", "classifier"]
)


@pytest.mark.parametrize(
    ("model_class", "kind"),
    [(ImageGPTForCausalImageModeling, "causal"), (ImageGPTForImageClassification, "bidirectional-no_biases")],
    ids=["generative", "classifier"],
)
def test_trainer_resumes_where_it_stopped(model_class, kind, tmp_path):
    """Two steps, a checkpoint and two more steps equal four bit for bit; the checkpoint is a normal folder."""
    dropout = {"resid_pdrop": 0.1, "attn_pdrop": 0.1}
    at_once = model_of(model_class, kind, **dropout)
    trainer_for(at_once, tmp_path / "at_once", max_steps=4).train()
    stopped = model_of(model_class, kind, **dropout)
    plan = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    first = trainer_for(stopped, tmp_path / "stopped", **plan)
    first.add_callback(stop_after(2))
    first.train()
    checkpoint = tmp_path / "stopped" / "checkpoint-2"
    loaded, info = model_class.from_pretrained(checkpoint, output_loading_info=True)
    assert not any(info.values())
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), stopped.parameters(), strict=True))
    resumed = model_of(model_class, kind, seed=9, **dropout)
    trainer_for(resumed, tmp_path / "stopped", **plan).train(resume_from_checkpoint=str(checkpoint))
    for (name, a), b in zip(resumed.named_parameters(), at_once.parameters(), strict=True):
        assert torch.equal(a, b), name


def stop_after(step):
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= step

    return Stop()


@HEADS
@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"bf16": True}, {"bf16_full_eval": True}],
                         ids=lambda options: next(iter(options), "plain"))  # fmt: skip
def test_trainer_evaluates_and_predicts(model_class, options, tmp_path):
    model = model_of(model_class)
    exact = loss_of(model, batch_for(model, batch=8)).item()
    trainer = trainer_for(model, tmp_path, max_steps=2, per_device_train_batch_size=8, **options)
    half = any("bf16" in name for name in options)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(exact, abs=5e-2 if half else 1e-5)
    predictions = trainer.predict(Images(model)).predictions
    predictions = predictions[0] if isinstance(predictions, tuple) else predictions
    expected = (8, 3) if model_class is ImageGPTForImageClassification else (8, 16, 16)
    assert predictions.shape == expected
    if "bf16_full_eval" not in options:
        trainer.train()
        assert trainer.evaluate()["eval_loss"] < exact
