"""Outputs of every model class: counterpart of the tests of outputs in transformers' `ModelTesterMixin`."""

import inspect

import pytest
import torch
from every_model import EVERY_CLASS, EVERY_MODEL, batch_for, main_output, model_of
from torch import nn
from transformers.utils.output_capturing import CompileableContextVar, OutputRecorder

from helpers import REFERENCE_CLASS, image_ids, largest_difference, tiny_config
from imagegpt import ImageGPTConfig, ImageGPTForImageClassification, ImageGPTModel

LAYERS, HEADS, WIDTH, PIXELS = 2, 4, 32, 16


# --- The same, whatever the company ---


@EVERY_MODEL
def test_two_calls_give_the_same_bits(model_class, kind):
    model = model_of(model_class, kind, resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3)
    inputs = batch_for(model)
    assert torch.equal(main_output(model, inputs), main_output(model, inputs))


@EVERY_MODEL
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_results_do_not_depend_on_the_batch(model_class, kind, backend):
    model = model_of(model_class, kind, backend=backend)
    inputs = {
        "input_ids": image_ids(batch=5),
        "attention_mask": torch.ones(5, PIXELS, dtype=torch.long),
        "token_type_ids": image_ids(batch=5, seed=3, sos=False),
        "output_hidden_states": True,
        "output_attentions": backend == "eager",
    }
    inputs["attention_mask"][3, :4] = 0
    together = model(**inputs)
    for row in range(5):
        alone = {name: x[row : row + 1] if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
        outputs = model(**alone)
        for name, expected in together.items():
            if name in ("past_key_values", "cache"):
                continue
            parts = expected if isinstance(expected, tuple) else (expected,)
            found = outputs[name] if isinstance(expected, tuple) else (outputs[name],)
            for a, b in zip(found, parts, strict=True):
                visible = slice(4, None) if row == 3 and a.ndim > 2 else slice(None)  # a padded query's are arbitrary
                if a.ndim == 3:
                    a, b = a[:, visible], b[:, visible]
                elif a.ndim == 4:
                    a, b = a[:, :, visible], b[:, :, visible]
                elif row == 3:
                    continue  # the classifier averages over padding, too
                assert largest_difference(a, b[row : row + 1]) < 1e-5, name


# --- Shapes and forms ---


@EVERY_MODEL
@pytest.mark.parametrize("asked_by", ["argument", "configuration"])
def test_attention_weights(model_class, kind, asked_by):
    options = {} if asked_by == "argument" else {"output_attentions": True}
    model = model_of(model_class, kind, backend="eager", **options)
    inputs = batch_for(model, labels=False)
    outputs = model(**inputs, **({"output_attentions": True} if asked_by == "argument" else {}))
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(2, HEADS, PIXELS, PIXELS)] * LAYERS
    for weights in outputs.attentions:
        assert largest_difference(weights.sum(-1), torch.ones(2, HEADS, PIXELS)) < 1e-5
        later = weights.triu(diagonal=1)
        assert (later.abs().max() == 0) == ("causal" in kind.split("-"))
    assert list(outputs)[-1] == "attentions"
    with_states = model(**inputs, output_attentions=True, output_hidden_states=True)
    assert len(with_states) == len(outputs) + 1


@EVERY_MODEL
@pytest.mark.parametrize("asked_by", ["argument", "configuration"])
def test_hidden_states(model_class, kind, asked_by):
    options = {} if asked_by == "argument" else {"output_hidden_states": True}
    model = model_of(model_class, kind, **options)
    inputs = batch_for(model, labels=False)
    outputs = model(**inputs, **({"output_hidden_states": True} if asked_by == "argument" else {}))
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(2, PIXELS, WIDTH)] * (LAYERS + 1)
    some = model(**inputs, output_hidden_states=[0, -1]).hidden_states
    assert [state is None for state in some] == [False, True, False]
    assert torch.equal(some[0], outputs.hidden_states[0])
    assert torch.equal(some[2], outputs.hidden_states[2])


@EVERY_MODEL
def test_tuple_outputs_equal_named_outputs(model_class, kind):
    model = model_of(model_class, kind, backend="eager")
    recorded = {"output_hidden_states": True, "output_attentions": True, "use_cache": False}
    for labels in (False, True):
        for asked in ({}, recorded):
            inputs = {**batch_for(model, labels=labels), "use_cache": False, **asked}
            named, plain = model(**inputs), model(**inputs, return_dict=False)
            assert isinstance(plain, tuple)
            assert len(plain) == len(named)
            for a, b in zip(plain, named.to_tuple(), strict=True):
                parts = zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]
                assert all(torch.equal(x, y) for x, y in parts)


@EVERY_MODEL
def test_tuple_outputs_requested_by_config(model_class, kind):
    """Regression: the heads failed if the configuration asks for tuples."""
    model = model_of(model_class, kind)
    inputs = {**batch_for(model), "use_cache": False}
    expected = model(**inputs).to_tuple()
    model.config.return_dict = False
    found = model(**inputs)
    assert isinstance(found, tuple)
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not isinstance(model(**inputs, return_dict=True), tuple)


@EVERY_MODEL
def test_retain_grad_of_captured_outputs(model_class, kind):
    model = model_of(model_class, kind, backend="eager")
    outputs = model(**batch_for(model, labels=False), output_hidden_states=True, output_attentions=True)
    recorded = [*outputs.hidden_states, *outputs.attentions]
    for tensor in recorded:
        tensor.retain_grad()
    outputs[0].square().sum().backward()
    for tensor in recorded:
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0


@EVERY_CLASS
def test_outputs_are_captured_once(model_class, monkeypatch):
    """With nested decorators, captured outputs would be split between them."""
    depth, deepest = {}, []
    enter, leave = CompileableContextVar.set, CompileableContextVar.reset

    def counted_enter(self, value):
        for name in value:
            depth[name] = depth.get(name, 0) + 1
        deepest.append(max(depth.values(), default=0))
        return enter(self, value)

    def counted_leave(self, token):
        for name in self.context_var.get():
            depth[name] -= 1
        return leave(self, token)

    monkeypatch.setattr(CompileableContextVar, "set", counted_enter)
    monkeypatch.setattr(CompileableContextVar, "reset", counted_leave)
    model = model_of(model_class, backend="eager", add_cross_attention=True)
    encoded = torch.randn(2, 3, WIDTH)
    model(image_ids(), encoder_hidden_states=encoded, output_hidden_states=True, output_attentions=True)
    assert deepest == [1]
    recorders = ImageGPTModel._can_record_outputs
    assert recorders.keys() == {"hidden_states", "attentions", "cross_attentions"}
    assert all(isinstance(recorder, (type, OutputRecorder)) for recorder in recorders.values())


# --- Inputs ---


@EVERY_MODEL
def test_inputs_embeds_equal_input_ids(model_class, kind):
    model = model_of(model_class, kind)
    inputs = batch_for(model)
    by_ids = main_output(model, inputs)
    inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))
    assert largest_difference(main_output(model, inputs), by_ids) < 1e-6


@EVERY_CLASS
def test_signature_and_main_input(model_class):
    ours, theirs = (inspect.signature(cls.forward).parameters for cls in (model_class, REFERENCE_CLASS[model_class]))
    assert next(iter(list(ours)[1:])) == "input_ids" == model_class.main_input_name
    options = {"output_attentions", "output_hidden_states", "return_dict", "kwargs", "cache_position"}
    cache = {"past_key_values", "cache"}  # renamed in 5.24; ours takes either
    assert set(theirs) - options - cache <= set(ours)
    assert any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in ours.values())
    for positional in ("input_ids", "past_key_values", "attention_mask", "token_type_ids", "position_ids"):
        theirs_name = positional if positional in theirs else "cache"
        assert list(ours).index(positional) == list(theirs).index(theirs_name)


@EVERY_CLASS
def test_prefix_and_base_model(model_class):
    model = model_of(model_class)
    assert model.base_model_prefix == "transformer"
    assert type(model.base_model) is ImageGPTModel
    assert model.base_model is (model if model_class is ImageGPTModel else model.transformer)


@EVERY_CLASS
def test_embeddings_can_be_read_and_replaced(model_class):
    model = model_of(model_class)
    assert isinstance(model.get_input_embeddings(), nn.Embedding)
    new = nn.Embedding(17, WIDTH)
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is new is model.base_model.wte
    head = model.get_output_embeddings()
    assert head is getattr(model, "lm_head", None)
    assert model(image_ids())[0].isfinite().all()


@EVERY_CLASS
def test_special_tokens_in_config_have_no_effect(model_class):
    """transformers' defaults for special tokens are ids of colours here."""
    bare = {name: x for name, x in tiny_config().to_diff_dict().items() if not name.endswith("_token_id")}
    model = model_class(ImageGPTConfig(**bare)).eval()
    expected = model(image_ids())[0]
    model.config.pad_token_id = model.config.eos_token_id = model.config.bos_token_id = 0
    assert torch.equal(model(image_ids())[0], expected)


@EVERY_CLASS
def test_the_setting_for_chunked_feed_forward_changes_nothing(model_class):
    """Every transformers configuration has it; neither its ImageGPT nor ours uses it."""
    model, chunked = model_of(model_class), model_of(model_class, chunk_size_feed_forward=1)
    assert chunked.config.chunk_size_feed_forward == 1
    assert torch.equal(chunked(image_ids())[0], model(image_ids())[0])


# --- Problem types of the classifier ---

PROBLEMS = {
    "single_label_classification": (3, torch.tensor([0, 2])),
    "multi_label_classification": (3, torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])),
    "regression": (1, torch.tensor([0.5, -1.0])),
}


@pytest.mark.parametrize("given", ["problem type", "labels alone"])
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("kind", ["causal", "bidirectional"])
def test_problem_types(kind, problem, given):
    num_labels, labels = PROBLEMS[problem]
    options = {"problem_type": problem} if given == "problem type" else {}
    model = ImageGPTForImageClassification(
        tiny_config(num_labels=num_labels, is_causal=kind == "causal", **options)
    ).train()
    outputs = model(image_ids(), labels=labels)
    expected = {
        "single_label_classification": lambda x: nn.functional.cross_entropy(x, labels),
        "multi_label_classification": lambda x: nn.functional.binary_cross_entropy_with_logits(x, labels),
        "regression": lambda x: nn.functional.mse_loss(x.flatten(), labels),
    }[problem](outputs.logits)
    assert largest_difference(outputs.loss, expected) < 1e-6
    outputs.loss.backward()
    assert model.score.weight.grad.abs().sum() > 0
