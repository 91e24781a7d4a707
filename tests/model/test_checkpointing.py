"""Gradient checkpointing gives the same loss and gradients."""

import pytest
import torch

from helpers import image_ids, largest_difference, tiny_model
from imagegpt import ImageGPTForCausalImageModeling, ImageGPTForImageClassification

# transformers 5.23 renamed the method; 5.17, which we support too, has this name only.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.(is_)?gradient_checkpointing(_enable|_disable)?. is deprecated:FutureWarning"
)

EITHER_WAY = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not_reentrant"])


def loss_and_gradients(model, inputs):
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@EITHER_WAY
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("case", ["causal", "bidirectional", "cross_attention", "classifier", "padding", "dropout"])
def test_same_loss_and_gradients(case, backend, reentrant):
    options = {
        "bidirectional": {"is_causal": False},
        "cross_attention": {"add_cross_attention": True},
        "classifier": {"num_labels": 4},
        "dropout": {"resid_pdrop": 0.2, "attn_pdrop": 0.2, "embd_pdrop": 0.2},
    }.get(case, {})
    model_class = ImageGPTForImageClassification if case == "classifier" else ImageGPTForCausalImageModeling
    model = tiny_model(model_class, backend=backend, n_layer=3, **options).train()
    inputs = {"input_ids": image_ids(), "labels": image_ids() % 16}
    if case == "classifier":
        inputs["labels"] = torch.tensor([1, 3])
    if case == "padding":
        inputs["attention_mask"] = torch.tensor([[1] * 16, [1] * 9 + [0] * 7])
    if case == "cross_attention":
        inputs["encoder_hidden_states"] = torch.randn(2, 5, 32, requires_grad=True)

    torch.manual_seed(1)
    plain_loss, plain = loss_and_gradients(model, inputs)
    encoder_grad = inputs["encoder_hidden_states"].grad if case == "cross_attention" else None
    model.zero_grad()
    if encoder_grad is not None:
        inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"].detach().requires_grad_()

    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    calls = []
    model.transformer.h[0].ln_1.register_forward_hook(lambda *args: calls.append(1))
    torch.manual_seed(1)
    loss, gradients = loss_and_gradients(model, inputs)
    assert len(calls) == 2  # forwards, and once more on the way back: it really is checkpointed
    assert largest_difference(loss, plain_loss) == 0
    assert gradients.keys() == plain.keys()
    assert all(largest_difference(gradients[name], plain[name]) < 1e-6 for name in plain)
    if encoder_grad is not None:
        assert largest_difference(inputs["encoder_hidden_states"].grad, encoder_grad) < 1e-6


@EITHER_WAY
def test_use_cache_is_switched_off(reentrant, transformers_log):
    model = tiny_model().train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    outputs = model(image_ids(), labels=image_ids() % 16, use_cache=True)
    assert outputs.past_key_values is None
    plain = tiny_model()(image_ids(), labels=image_ids() % 16).loss
    assert largest_difference(outputs.loss, plain) == 0


@EITHER_WAY
def test_hidden_states_are_still_recorded(reentrant):
    model = tiny_model().train()
    expected = model(image_ids(), output_hidden_states=True).hidden_states
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    outputs = model(image_ids(), labels=image_ids() % 16, output_hidden_states=True)
    assert len(outputs.hidden_states) == 3
    assert all(largest_difference(a, b) == 0 for a, b in zip(outputs.hidden_states, expected, strict=True))
    outputs.loss.backward()


def test_evaluation_is_not_checkpointed_and_keeps_its_cache():
    model = tiny_model()
    model.gradient_checkpointing_enable()
    assert model(image_ids()).past_key_values.get_seq_length() == 16


def test_checkpointing_can_be_disabled_again():
    model = tiny_model().train()
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    assert model(image_ids()).past_key_values is not None
