"""Model inputs and uses: unusual ones that must work, and invalid ones that must be one-sentence errors.

What a hostile or hurried user does. The arithmetic is in test_parity.py and its neighbours.
"""

import copy
import pickle
import threading

import pytest
import torch
from transformers import DynamicCache

from helpers import image_ids, largest_difference, tiny_config, tiny_model
from imagegpt import ImageGPTForCausalImageModeling, ImageGPTForImageClassification


def whole_image():
    """(2, 17): the start token and all 16 pixels."""
    return torch.cat([torch.full((2, 1), 16), image_ids(sos=False)], dim=1)


# --- Odd, and right ---


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8], ids=str)
def test_ids_of_other_integer_types(dtype):
    # numpy images are uint8.
    model = tiny_model()
    assert largest_difference(model(image_ids().to(dtype)).logits, model(image_ids()).logits) == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32], ids=str)
def test_labels_of_other_integer_types(dtype):
    model = tiny_model()
    assert model(image_ids(), labels=image_ids().to(dtype)).loss == model(image_ids(), labels=image_ids()).loss


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)], ids=["no_images", "no_pixels"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_empty_batches(shape, backend):
    logits = tiny_model(backend=backend)(torch.zeros(shape, dtype=torch.long)).logits
    assert logits.shape == (*shape, 16)


def test_positions_without_a_batch_axis():
    model = tiny_model()
    assert largest_difference(model(image_ids(), position_ids=torch.arange(16)).logits, model(image_ids()).logits) == 0


def test_exact_likelihood_of_whole_images():
    model = tiny_model(dtype=torch.float64)
    ids = whole_image()
    by_hand = -model(ids[:, :-1]).logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).mean()
    assert abs(model(ids, labels=ids).loss - by_hand) < 1e-12
    assert abs(model(ids[:, :-1], labels=ids).loss - by_hand) < 1e-12
    mask = torch.ones_like(ids)
    assert abs(model(ids, labels=ids, attention_mask=mask).loss - by_hand) < 1e-12


@pytest.mark.parametrize(
    "extra",
    [
        {"token_type_ids": whole_image()},
        {"position_ids": torch.arange(17)[None]},
        {"attention_mask": torch.ones(2, 1, 17, 17).bool().tril()},
        {"past_key_values": DynamicCache()},
    ],
    ids=["token_type_ids", "position_ids", "ready_made_mask", "empty_cache"],
)
def test_exact_likelihood_with_more_inputs(extra):
    model = tiny_model()
    first = {k: v[:, :16] if k == "token_type_ids" else v for k, v in extra.items() if k == "token_type_ids"}
    expected = -model(whole_image()[:, :-1], **first).logits.log_softmax(-1)
    expected = expected.gather(-1, whole_image()[:, 1:, None]).mean()
    loss = model(whole_image(), labels=whole_image(), **extra).loss
    assert largest_difference(loss, expected) < 1e-6


def test_ignored_labels_do_not_count():
    model = tiny_model(dtype=torch.float64)
    labels = image_ids().clone()
    labels[:, :9] = -100
    log_p = model(image_ids()).logits.log_softmax(-1)[:, 8:-1]
    by_hand = -log_p.gather(-1, image_ids()[:, 9:, None]).mean()
    assert abs(model(image_ids(), labels=labels).loss - by_hand) < 1e-12


def test_bidirectional_labels_are_not_shifted():
    model = tiny_model(is_causal=False, dtype=torch.float64)
    labels = image_ids(seed=4, sos=False).clone()
    labels[0, :5] = -100
    log_p = model(image_ids()).logits.log_softmax(-1)
    kept = labels != -100
    by_hand = -log_p[kept].gather(-1, labels[kept][:, None]).mean()
    assert abs(model(image_ids(), labels=labels).loss - by_hand) < 1e-12


@pytest.mark.parametrize("items", [7, torch.tensor(7)], ids=["number", "tensor"])
def test_num_items_in_batch_divides_the_summed_loss(items):
    model = tiny_model()
    mean = model(image_ids(), labels=image_ids()).loss
    assert model(image_ids(), labels=image_ids(), num_items_in_batch=items).loss.item() == pytest.approx(
        mean.item() * 30 / 7, rel=1e-6
    )


# --- Wrong, and refused ---

REFUSED = {
    "neither": ({}, "neither of input_ids and inputs_embeds"),
    "both": ({"input_ids": image_ids(), "inputs_embeds": torch.zeros(2, 16, 32)}, "both of input_ids and"),
    "one_axis": ({"input_ids": image_ids()[0]}, r"input_ids has the shape \(16,\)"),
    "three_axes": ({"input_ids": image_ids()[None]}, r"input_ids has the shape \(1, 2, 16\)"),
    "negative_id": ({"input_ids": image_ids() - 20}, "input_ids contains -20: this model has tokens 0 to 16"),
    "large_id": ({"input_ids": image_ids() + 5}, "input_ids contains 21: this model has tokens 0 to 16"),
    "large_type": ({"input_ids": image_ids(), "token_type_ids": image_ids() + 9}, "token_type_ids contains 25"),
    "too_long": ({"input_ids": torch.zeros(2, 40, dtype=torch.long)}, "ends at position 40, this model has 16"),
    "one_too_long": ({"input_ids": whole_image()}, "ends at position 17, this model has 16"),
    "long_embeds": ({"inputs_embeds": torch.zeros(2, 17, 32)}, "ends at position 17, this model has 16"),
    "large_label": (
        {"input_ids": image_ids(), "labels": image_ids() + 3},
        "labels contains 1[78]: colours are 0 to 15",
    ),
    "sos_label": ({"input_ids": image_ids(), "labels": torch.full((2, 16), 16)}, "labels contains 16: colours are"),
    "labels_for_kept": (
        {"input_ids": image_ids(), "labels": image_ids()[:, -3:], "logits_to_keep": 3},
        "3 labels were given for 16 positions",
    ),
    "no_label_for_kept": (
        {"input_ids": image_ids(), "labels": image_ids(), "logits_to_keep": 1},
        "no position in logits_to_keep has a label",
    ),
    "no_label_for_chosen": (
        {"input_ids": image_ids(), "labels": image_ids(), "logits_to_keep": torch.tensor([15, -1])},
        "no position in logits_to_keep has a label",
    ),
    "negative_keep": ({"input_ids": image_ids(), "logits_to_keep": -3}, "logits_to_keep is -3: give how many"),
    "half_a_position": ({"input_ids": image_ids(), "logits_to_keep": 2.5}, "logits_to_keep is 2.5: give how many"),
    "scalar_keep": ({"input_ids": image_ids(), "logits_to_keep": torch.tensor(3)}, r"logits_to_keep .*shape \(\)"),
    "keep_of_two_axes": (
        {"input_ids": image_ids(), "logits_to_keep": torch.zeros(2, 3, dtype=torch.long)},
        r"logits_to_keep .*shape \(2, 3\)",
    ),
    "short_mask_of_kept": ({"input_ids": image_ids(), "logits_to_keep": torch.ones(9).bool()}, "or 16 booleans"),
    "keep_beyond": ({"input_ids": image_ids(), "logits_to_keep": torch.tensor([3, 16])}, "logits_to_keep contains 16"),
    "short_shift_labels": ({"input_ids": image_ids(), "shift_labels": image_ids()[:, 1:]}, "15 labels were given"),
    "shift_labels_of_one": ({"input_ids": image_ids(), "shift_labels": image_ids()[:1]}, "shift_labels is .* shape"),
    "encoder": ({"input_ids": image_ids(), "encoder_hidden_states": torch.zeros(2, 5, 32)}, "add_cross_attention"),
    "float_ids": ({"input_ids": image_ids().float()}, "input_ids"),
    "list_of_ids": ({"input_ids": image_ids().tolist()}, "input_ids"),
    "narrow_embeds": ({"inputs_embeds": torch.zeros(2, 16, 31)}, "inputs_embeds"),
    "flat_embeds": ({"inputs_embeds": torch.zeros(2, 12)}, "inputs_embeds"),
    "positions_too_large": ({"input_ids": image_ids(), "position_ids": torch.arange(16)[None] + 5}, "position_ids.*20"),
    "positions_negative": ({"input_ids": image_ids(), "position_ids": torch.arange(16)[None] - 5}, "position_ids.*-5"),
    "mask_of_three_images": ({"input_ids": image_ids(), "attention_mask": torch.eye(3, 16)}, "attention_mask"),
    "mask_too_short": ({"input_ids": image_ids(), "attention_mask": torch.eye(2, 9)}, "attention_mask"),
    "mask_too_long": ({"input_ids": image_ids(), "attention_mask": torch.eye(2, 20)}, "attention_mask"),
    "too_few_labels": ({"input_ids": image_ids(), "labels": image_ids()[:, :9]}, "8 labels|9 labels"),
    "mask_of_one_image": ({"input_ids": image_ids(), "attention_mask": torch.eye(1, 16)}, "attention_mask"),
    "mask_three_axes": ({"input_ids": image_ids(), "attention_mask": torch.zeros(2, 16, 16)}, "attention_mask"),
    "labels_of_one_image": ({"input_ids": image_ids(), "labels": image_ids()[:1]}, "labels"),
    "negative_label": ({"input_ids": image_ids(), "labels": torch.full((2, 16), -5)}, "labels contains -5"),
    "nothing_to_predict": ({"input_ids": image_ids()[:, :1], "labels": image_ids()[:, :1]}, "labels"),
}


@pytest.mark.parametrize(
    ("inputs", "message"),
    REFUSED.values(),
    ids=REFUSED,
)
def test_invalid_inputs_are_one_sentence(inputs, message):
    with pytest.raises((ValueError, TypeError), match=message) as error:
        tiny_model()(**inputs)
    assert "\n" not in str(error.value)


def test_cache_in_bidirectional_model_is_an_error():
    # Earlier pixels should have seen the later ones; in chunks they did not, and the logits differ from the whole's.
    model = tiny_model(is_causal=False)
    assert model(image_ids()).past_key_values is None
    past = tiny_model()(image_ids()[:, :8], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="is_causal=False"):
        model(image_ids()[:, 8:], past_key_values=past)


def test_shifted_classifier_refuses_a_filled_cache():
    model = tiny_model(ImageGPTForImageClassification, shift_inputs=True)
    past = model(image_ids()[:, :8], use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"past_key_values|shift_inputs"):
        model(image_ids()[:, 8:], past_key_values=past)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_cache_with_gradient_checkpointing_is_an_error():
    # transformers drops the cache inside each block, but the mask was made for it: a shape error of broadcasting.
    model = tiny_model().train()
    past = model(image_ids()[:, :4]).past_key_values
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="checkpointing"):
        model(image_ids()[:, 4:], past_key_values=past)


@pytest.mark.parametrize("prompt", [image_ids()[0], [[16, 1]]], ids=["one_axis", "list"])
def test_prompts_of_the_wrong_shape_are_refused(prompt):
    with pytest.raises((ValueError, TypeError), match=r"prompt|input"):
        tiny_model().generate(prompt)


def test_prompt_of_none_is_no_prompt():
    assert tiny_model().generate(input_ids=None).shape == (1, 17)


# --- Odd uses ---


def test_deep_copy_is_independent():
    model = tiny_model()
    model(image_ids(), output_hidden_states=True)  # hooks are installed now
    twin = copy.deepcopy(model)
    assert len(twin(image_ids(), output_hidden_states=True).hidden_states) == 3
    with torch.no_grad():
        twin.lm_head.weight.zero_()
    assert model(image_ids()).logits.abs().max() > 0


def test_a_model_survives_pickling():
    # As processes that are spawned do it. A model whose outputs were recorded does not: transformers' hooks are local.
    model = tiny_model()
    assert largest_difference(pickle.loads(pickle.dumps(model))(image_ids()).logits, model(image_ids()).logits) == 0


def test_models_in_threads_are_independent():
    models = [tiny_model(seed=1), tiny_model(seed=2, backend="eager", n_layer=3)]
    expected = [model(image_ids(), output_hidden_states=True) for model in models]
    wrong = []

    def run(model, right):
        for _ in range(30):
            with torch.no_grad():
                outputs = model(image_ids(), output_hidden_states=True)
            if len(outputs.hidden_states) != len(right.hidden_states) or not torch.equal(outputs.logits, right.logits):
                wrong.append(model)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(models * 2, expected * 2, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_meta_device():
    with torch.device("meta"):
        model = ImageGPTForCausalImageModeling(tiny_config())
        ids = torch.zeros(2, 16, dtype=torch.long)
    outputs = model(ids, labels=ids)
    assert outputs.logits.shape == (2, 16, 16)
    assert outputs.loss.shape == ()


def test_gradients_by_function_transforms():
    model = tiny_model()
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights):
        inputs = {"labels": image_ids(), "use_cache": False}
        return torch.func.functional_call(model, weights, (image_ids(),), inputs).loss

    gradients = torch.func.grad(loss)(weights)
    model(image_ids(), labels=image_ids()).loss.backward()
    assert all(largest_difference(gradients[name], p.grad) < 1e-6 for name, p in model.named_parameters())


def test_inference_mode():
    with torch.inference_mode():
        assert largest_difference(tiny_model()(image_ids()).logits, tiny_model()(image_ids()).logits) == 0


def test_embeddings_can_be_replaced():
    model = tiny_model()
    assert model.get_output_embeddings() is model.lm_head
    new = torch.nn.Embedding(17, 32)
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is new is model.transformer.wte


def test_tie_weights_does_not_change_output_matrix():
    model = tiny_model()
    before = model.lm_head.weight.clone()
    model.tie_weights()
    assert torch.equal(model.lm_head.weight, before)
    assert model.lm_head.weight is not model.transformer.wte.weight


def test_only_the_generative_model_generates():
    assert ImageGPTForCausalImageModeling.can_generate()
    assert not ImageGPTForImageClassification.can_generate()
