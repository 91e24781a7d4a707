"""Parity with transformers' ImageGPT: logits, hidden states, attentions, loss and gradients.

Every case runs twice. In float32 logits may differ by 1e-5 (measured: 1e-6 to 3e-6, which is also how far either lies
from float64). In float64 both compute the same function and differ by rounding alone, 1e-14 or so; 1e-11 there leaves
no room for a different function. The mutants at the end show that the comparison notices near misses.
"""

import pytest
import torch
from torch import nn
from transformers.activations import ACT2CLS

from helpers import image_ids, largest_difference, reference_for, tiny_config, tiny_model
from imagegpt import ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTModel
from imagegpt.model.layers import ImageGPTLayerNorm

pytestmark = pytest.mark.parity

# dtype -> limit for logits, states, attentions and loss; gradients are compared relative to the largest of them.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}
BOTH_DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float32", "float64"])


def plain(config):
    return {"input_ids": image_ids(config=config)}


def short(config):
    return {"input_ids": image_ids(batch=1, pixels=5, config=config)}


def right_padded(config):
    mask = torch.ones(2, config.n_positions, dtype=torch.long)
    mask[0, 9:] = 0
    return {"input_ids": image_ids(config=config), "attention_mask": mask}


def left_padded(config):
    mask = torch.ones(2, config.n_positions, dtype=torch.long)
    mask[0, :4] = 0
    return {"input_ids": image_ids(config=config), "attention_mask": mask}


def with_token_types(config):
    return {"input_ids": image_ids(config=config), "token_type_ids": image_ids(config=config, seed=1)}


def with_positions(config):
    return {"input_ids": image_ids(config=config), "position_ids": torch.arange(config.n_positions).flip(0)[None]}


def with_positions_per_image(config):
    positions = torch.stack([torch.arange(config.n_positions), torch.arange(config.n_positions).roll(3)])
    return {"input_ids": image_ids(config=config), "position_ids": positions}


def with_embeds(config):
    generator = torch.Generator().manual_seed(3)
    embeds = torch.randn(2, config.n_positions, config.n_embd, generator=generator)
    return {"inputs_embeds": embeds, "labels": image_ids(config=config)}


def with_encoder(config):
    generator = torch.Generator().manual_seed(4)
    # The reference works without a cache and without any mask only (defect 2).
    encoded = torch.randn(2, 7, config.n_embd, generator=generator)
    return {"input_ids": image_ids(config=config), "encoder_hidden_states": encoded, "use_cache": False}


CASES = {
    "default": ({}, plain),
    "short_input": ({}, short),
    "n_inner": ({"n_inner": 20}, plain),
    "no_attention_scale": ({"scale_attn_weights": False}, plain),
    "inverse_layer_scale": ({"scale_attn_by_inverse_layer_idx": True, "n_layer": 3}, plain),
    "inverse_layer_scale_only": (
        {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False, "n_layer": 3},
        plain,
    ),
    "reorder_and_upcast": ({"reorder_and_upcast_attn": True}, plain),
    "reorder_and_upcast_inverse": ({"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True}, plain),
    "reorder_and_upcast_padded": ({"reorder_and_upcast_attn": True}, left_padded),
    "cross_attention": ({"add_cross_attention": True}, with_encoder),
    "cross_attention_upcast": ({"add_cross_attention": True, "reorder_and_upcast_attn": True}, with_encoder),
    "large_epsilon": ({"layer_norm_epsilon": 0.3}, plain),
    "two_colours_five_pixels": ({"vocab_size": 3, "n_positions": 5, "n_embd": 6, "n_head": 1}, plain),
    "heads_of_one_channel": ({"n_embd": 8, "n_head": 8}, plain),
    "wide_one_block": ({"n_embd": 96, "n_head": 2, "n_layer": 1, "n_positions": 36, "vocab_size": 513}, plain),
    "deep": ({"n_layer": 6, "n_embd": 16}, plain),
    "right_padding": ({}, right_padded),
    "left_padding": ({}, left_padded),
    "token_type_ids": ({}, with_token_types),
    "position_ids": ({}, with_positions),
    "position_ids_per_image": ({}, with_positions_per_image),
    "inputs_embeds": ({}, with_embeds),
}


def run(model, inputs, weighting=None):
    """Outputs of a forward pass with all states captured, and the gradients of the loss."""
    inputs = {k: v.to(model.dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}
    outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
    model.zero_grad()
    outputs.loss.backward()
    return outputs, {name: p.grad for name, p in model.named_parameters()}


def seen_rows(inputs):
    """(B, T), True for real pixels; outputs at padding are not compared."""
    mask = inputs.get("attention_mask")
    return slice(None) if mask is None else mask.bool()


def assert_same_states(ours, theirs, rows, limit):
    assert len(ours) == len(theirs)
    for layer, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert largest_difference(a[rows], b[rows]) <= limit, f"layer {layer}"


def assert_same_gradients(ours, theirs, limit):
    assert ours.keys() == theirs.keys()
    used = {name for name, grad in theirs.items() if grad is not None}
    assert used == {name for name, grad in ours.items() if grad is not None}
    scale = max(theirs[name].abs().max().item() for name in used)
    for name in used:
        assert largest_difference(ours[name], theirs[name]) <= limit * max(scale, 1), name


def with_labels(inputs):
    """Labels of real pixels; transformers would count the padding too."""
    if "labels" in inputs:
        return inputs
    labels = inputs["input_ids"].clone()
    if "attention_mask" in inputs:
        mask = inputs["attention_mask"].bool()
        # The output for the last left-hand padding pixel predicts the first real one.
        predicted_by_real = torch.cat([mask[:, :1], mask[:, :-1]], dim=1)
        labels = labels.masked_fill(~(mask & predicted_by_real), -100)
    labels[:, 0] = -100
    return {**inputs, "labels": labels}


# Upcast attention is for half precision: in a float64 model the reference computes scores in float32, or raises.
IN_BOTH_DTYPES = [
    pytest.param(case, dtype, id=f"{case}-{str(dtype).removeprefix('torch.')}")
    for case, (options, _) in CASES.items()
    for dtype in TOLERANCE
    if dtype == torch.float32 or "reorder_and_upcast_attn" not in options
]


@pytest.mark.parametrize(("case", "dtype"), IN_BOTH_DTYPES)
def test_generative_model(case, dtype):
    options, make_inputs = CASES[case]
    model = tiny_model(**options, dtype=dtype)
    inputs = with_labels(make_inputs(model.config))
    rows, limit = seen_rows(inputs), TOLERANCE[dtype]

    ours, our_grads = run(model, inputs)
    theirs, their_grads = run(reference_for(model), inputs)

    assert largest_difference(ours.logits[rows], theirs.logits[rows]) <= limit
    assert_same_states(ours.hidden_states, theirs.hidden_states, rows, limit)
    pairs = [(ours.attentions, theirs.attentions)]
    if "encoder_hidden_states" in inputs:
        pairs.append((ours.cross_attentions, theirs.cross_attentions))
    for our_attentions, their_attentions in pairs:
        assert len(our_attentions) == model.config.n_layer
        for a, b in zip(our_attentions, their_attentions, strict=True):
            assert largest_difference(a.transpose(1, 2)[rows], b.transpose(1, 2)[rows]) <= limit
    assert largest_difference(ours.loss, theirs.loss) <= limit
    assert_same_gradients(our_grads, their_grads, limit)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("case", ["default", "left_padding", "right_padding", "cross_attention", "inverse_layer_scale"])
def test_each_backend_without_recorded_outputs(case, backend):
    # Recording attentions silently switches to the eager backend, so the test above never reaches sdpa.
    options, make_inputs = CASES[case]
    model = tiny_model(**options, backend=backend)
    inputs = with_labels(make_inputs(model.config))
    theirs = reference_for(model)
    our_loss, their_loss = model(**inputs), theirs(**inputs)
    our_loss.loss.backward()
    their_loss.loss.backward()
    rows = seen_rows(inputs)
    assert largest_difference(our_loss.logits[rows], their_loss.logits[rows]) <= 1e-5
    assert_same_gradients(
        {name: p.grad for name, p in model.named_parameters()},
        {name: p.grad for name, p in theirs.named_parameters()},
        1e-5,
    )


@pytest.mark.parametrize("activation", sorted(ACT2CLS))
def test_each_activation(activation):
    model = tiny_model(activation_function=activation, n_layer=2, dtype=torch.float64)
    inputs = with_labels(plain(model.config))
    ours, our_grads = run(model, inputs)
    theirs, their_grads = run(reference_for(model), inputs)
    limit = 1e-11
    assert largest_difference(ours.logits, theirs.logits) <= limit
    assert_same_gradients(our_grads, their_grads, limit)


@BOTH_DTYPES
def test_base_model(dtype):
    model = tiny_model(ImageGPTModel, dtype=dtype)
    ids = image_ids()
    ours, theirs = (m(ids, output_hidden_states=True) for m in (model, reference_for(model)))
    assert largest_difference(ours.last_hidden_state, theirs.last_hidden_state) <= TOLERANCE[dtype]
    assert_same_states(ours.hidden_states, theirs.hidden_states, slice(None), TOLERANCE[dtype])


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.float64,
    ],
    ids=["float32", "float64"],
)
@pytest.mark.parametrize(
    ("options", "labels"),
    [
        ({"num_labels": 5}, torch.tensor([4, 0])),
        ({"num_labels": 1}, torch.tensor([0.3, -2.0])),
        ({"num_labels": 3, "problem_type": "regression"}, torch.tensor([[0.3, -2.0, 1.0], [0.0, 1.0, 5.0]])),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, torch.tensor([[1.0, 0, 1], [0, 0, 1]])),
    ],
    ids=["single_label", "one_number", "three_numbers", "multi_label"],
)
def test_classifier(options, labels, dtype):
    model = tiny_model(ImageGPTForImageClassification, shift_inputs=False, dtype=dtype, **options)
    limit = TOLERANCE[dtype]
    labels = labels.to(dtype) if labels.is_floating_point() else labels
    inputs = {"input_ids": image_ids(sos=False), "labels": labels}
    ours, our_grads = run(model, inputs)
    theirs, their_grads = run(reference_for(model), inputs)
    assert largest_difference(ours.logits, theirs.logits) <= limit
    assert_same_states(ours.hidden_states, theirs.hidden_states, slice(None), limit)
    assert largest_difference(ours.loss, theirs.loss) <= limit * theirs.loss.item()
    assert_same_gradients(our_grads, their_grads, limit)


@pytest.mark.parametrize("model_class", [ImageGPTModel, ImageGPTForCausalImageModeling])
def test_tuple_outputs_have_the_same_order(model_class):
    model = tiny_model(model_class)
    inputs = {"input_ids": image_ids(), "use_cache": False}
    if model_class is ImageGPTForCausalImageModeling:
        inputs["labels"] = image_ids() % 16
    inputs |= {"output_hidden_states": True, "output_attentions": True, "return_dict": False}
    ours, theirs = model(**inputs), reference_for(model)(**inputs)
    assert isinstance(ours, tuple)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        flat = [(a, b)] if torch.is_tensor(a) else zip(a, b, strict=True)
        assert all(largest_difference(x, y) <= 1e-5 for x, y in flat)


# --- Mutants: each is a mistake a port of this model has made or could make, and the comparison must notice it. ---
# They are made of hooks, weights and small replacements on a finished model, so that they outlive refactorings.


def change_norm(function):
    def mutate(model, monkeypatch):
        monkeypatch.setattr(ImageGPTLayerNorm, "forward", function)

    return mutate


def centred(norm, x):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def epsilon_outside_the_root(norm, x):
    return x / (x.square().mean(-1, keepdim=True).sqrt() + norm.eps) * norm.weight


def sum_instead_of_mean(norm, x):
    return x / (x.square().sum(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def gain_left_out(norm, x):
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()


def change_activation(activation):
    def mutate(model, monkeypatch):
        for block in model.transformer.h:
            block.mlp.act = activation

    return mutate


def shifted_positions(model, monkeypatch):
    model.transformer.wpe.weight.data = model.transformer.wpe.weight.data.roll(1, dims=0)


def scale_scores(factor):
    def mutate(model, monkeypatch):
        for block in model.transformer.h:
            block.attn.scaling *= factor(block.attn)

    return mutate


def change_qkv_columns(reorder):
    """Permute the columns of the (C, 3 C) projection and of its bias."""

    def mutate(model, monkeypatch):
        for block in model.transformer.h:
            index = reorder(torch.arange(block.attn.c_attn.weight.shape[1]), block.attn.head_dim)
            block.attn.c_attn.weight.data = block.attn.c_attn.weight.data[:, index]
            block.attn.c_attn.bias.data = block.attn.c_attn.bias.data[index]

    return mutate


def swap(first, second):
    def reorder(columns, head_dim):
        parts = list(columns.chunk(3))
        parts[first], parts[second] = parts[second], parts[first]
        return torch.cat(parts)

    return reorder


def interleaved_heads(columns, head_dim):
    return torch.cat([part.view(-1, head_dim).T.flatten() for part in columns.chunk(3)])


def per_head_qkv(columns, head_dim):
    return columns.view(3, -1, head_dim).transpose(0, 1).flatten()


def residual_from_the_normed_stream(model, monkeypatch):
    for block in model.transformer.h:
        seen = {}

        def keep(module, args, output, seen=seen):
            seen["correction"] = output - args[0]

        def correct(module, args, output, seen=seen):
            return (output[0] + seen["correction"], *output[1:])

        block.ln_1.register_forward_hook(keep)
        block.attn.register_forward_hook(correct)


def no_final_norm(model, monkeypatch):
    model.transformer.ln_f = nn.Identity()


def swapped_norms(model, monkeypatch):
    for block in model.transformer.h:
        block.ln_1, block.ln_2 = block.ln_2, block.ln_1


def causal_offset(diagonal):
    def mutate(model, monkeypatch):
        length = model.config.n_positions
        mask = torch.ones(length, length, dtype=torch.bool).tril(diagonal)
        mask |= torch.eye(length, dtype=torch.bool)[0] if diagonal < 0 else mask  # no row without a key
        forward = model.forward
        monkeypatch.setattr(
            model, "forward", lambda **kwargs: forward(**kwargs, attention_mask=mask.expand(2, 1, -1, -1))
        )

    return mutate


def transposed_output(model, monkeypatch):
    for block in model.transformer.h:
        block.attn.c_proj.weight.data = block.attn.c_proj.weight.data.T.contiguous()


def bias_left_out(model, monkeypatch):
    for block in model.transformer.h:
        block.mlp.c_proj.bias.data.zero_()


def last_gain_left_out(model, monkeypatch):
    model.transformer.ln_f.weight.data.fill_(1.0)


MUTANTS = {
    "none": lambda model, monkeypatch: None,
    "centred_norm": change_norm(centred),
    "epsilon_outside_the_root": change_norm(epsilon_outside_the_root),
    "sum_instead_of_mean": change_norm(sum_instead_of_mean),
    "gain_left_out": change_norm(gain_left_out),
    "last_gain_left_out": last_gain_left_out,
    "tanh_gelu": change_activation(nn.GELU("tanh")),
    "exact_gelu": change_activation(nn.GELU()),
    "silu": change_activation(nn.SiLU()),
    "shifted_positions": shifted_positions,
    "no_division_by_root_d": scale_scores(lambda attention: attention.head_dim**0.5),
    "no_inverse_layer_scale": scale_scores(lambda attention: attention.layer_idx + 1),
    "inverse_layer_scale_from_zero": scale_scores(lambda a: (a.layer_idx + 1) / max(a.layer_idx, 1)),
    "interleaved_heads": change_qkv_columns(interleaved_heads),
    "per_head_qkv": change_qkv_columns(per_head_qkv),
    "q_and_k_swapped": change_qkv_columns(swap(0, 1)),
    "k_and_v_swapped": change_qkv_columns(swap(1, 2)),
    "transposed_output": transposed_output,
    "bias_left_out": bias_left_out,
    "residual_from_the_normed_stream": residual_from_the_normed_stream,
    "no_final_norm": no_final_norm,
    "swapped_norms": swapped_norms,
    "sees_one_pixel_ahead": causal_offset(1),
    "does_not_see_itself": causal_offset(-1),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_parity_detects_each_mutant(name, monkeypatch):
    # The epsilon is that of the paper, but the first stream is as small as a fresh model's: there it matters.
    model = tiny_model(n_layer=3, scale_attn_by_inverse_layer_idx=True, backend="eager")
    with torch.no_grad():
        model.transformer.wte.weight.mul_(0.02)
        model.transformer.wpe.weight.mul_(0.01)
    inputs = with_labels(plain(tiny_config()))
    theirs = reference_for(model)(**inputs)
    MUTANTS[name](model, monkeypatch)
    with torch.no_grad():
        ours = model.forward(**inputs)
    difference = largest_difference(ours.logits, theirs.logits)
    if name == "none":
        assert difference <= 1e-5
        assert largest_difference(ours.loss, theirs.loss) <= 1e-5
    else:
        assert difference > 100 * 1e-5, f"logits moved by {difference:.1e} only"
        assert largest_difference(ours.loss, theirs.loss) > 1e-5
