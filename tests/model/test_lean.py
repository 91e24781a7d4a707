"""Training that keeps little: the gradients are those of torch's own operations."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling
from imagegpt.kernels import building
from imagegpt.model import lean
from imagegpt.model.layers import ImageGPTLayerNorm, Projection, QuickGELU


@pytest.fixture(params=[False, True], ids=["torch", "kernels"])
def _kernels(request, monkeypatch):
    """With our kernels, and as if there were none."""
    if request.param:
        request.getfixturevalue("with_training_kernels")
    monkeypatch.setattr(building, "is_loaded", lambda _: request.param)
    monkeypatch.setitem(globals(), "BACKEND", "kernels" if request.param else "sdpa")


BACKEND = "sdpa"


def small_model(**options):
    torch.manual_seed(0)
    fields = {"vocab_size": 11, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
    model = ImageGPTForCausalImageModeling(ImageGPTConfig(**fields, **options)).train()
    model.set_attn_implementation(BACKEND)
    return model


def gradients(model, precision=torch.float32):
    model.zero_grad()
    ids = torch.randint(10, (3, 16), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        loss = nn.functional.cross_entropy(model(ids).logits.flatten(0, 1).float(), ids.flatten())
    loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_plain_operations(precision, tolerance, bias, monkeypatch):
    model = small_model(use_bias=bias, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    mine = gradients(model, precision)
    monkeypatch.setattr(lean, "is_plain_training", lambda *_: False)
    plain = gradients(model, precision)
    assert mine.keys() == plain.keys()
    for name in plain:
        assert mine[name].dtype == torch.float32
        assert (mine[name] - plain[name]).norm() <= tolerance * plain[name].norm(), name


@pytest.mark.usefixtures("_kernels")
def test_what_is_kept(monkeypatch):
    """Of a block: the stream twice, queries, keys and values, their mixture, and what the activation was given."""

    def kept(precision):
        model = small_model(use_bias=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        found = {}

        def note(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                found[storage.data_ptr()] = (storage.nbytes(), tensor)  # alive, lest its place is given away
            return tensor

        block, x = model.transformer.h[0], torch.randn(3, 16, 32, requires_grad=True)
        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16),
        ):
            block(x, attn_implementation="sdpa")
        return sum(nbytes for nbytes, _ in found.values()) / x.numel()

    logs = 4 * 2 / 32  # of sums, of each head, which attention keeps
    assert kept(torch.float32) == pytest.approx(4 * (2 + 3 + 1 + 4) + logs)
    assert kept(torch.bfloat16) == pytest.approx(4 * 2 + 2 * (3 + 1 + 4) + logs)
    monkeypatch.setattr(lean, "is_plain_training", lambda *_: False)
    assert kept(torch.bfloat16) > 2 * 24


@pytest.mark.parametrize("has_bias", [True, False])
def test_gradients_can_be_differentiated_again(has_bias):
    torch.manual_seed(0)
    projections = Projection(6, 5, has_bias), Projection(5, 3, has_bias)
    layers = nn.Sequential(ImageGPTLayerNorm(6), projections[0], QuickGELU(), projections[1]).double()
    names, weights = zip(*layers.named_parameters(), strict=True)

    def out(x, *weights):
        for name, weight in zip(names, weights, strict=True):
            module, _, last = name.rpartition(".")
            target = layers.get_submodule(module)
            del target._parameters[last]
            setattr(target, last, weight)
            target._parameters[last] = weight
            target.__dict__.pop(last, None)
        return layers(x)

    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    inputs = (x, *(weight.detach().clone().requires_grad_() for weight in weights))
    assert torch.autograd.gradcheck(out, inputs)
    assert torch.autograd.gradgradcheck(out, inputs)


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize("change", [lambda out: 2 * out, lambda out: out.mul_(2)], ids=["replaced", "in_place"])
def test_a_hook_may_change_what_a_projection_is_given(change):
    """Then it is not what could be computed again."""
    model = small_model(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    doubled = small_model(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    for block in model.transformer.h:
        block.ln_2.register_forward_hook(lambda module, given, out: change(out))
    with torch.no_grad():
        for block in doubled.transformer.h:
            block.ln_2.weight.mul_(2)
    mine, other = gradients(model), gradients(doubled)
    for name in mine:
        factor = 2 if "ln_2" in name else 1
        torch.testing.assert_close(mine[name], factor * other[name], rtol=1e-4, atol=1e-6)


def test_what_a_projection_gave_can_be_changed_in_place():
    projection, x = Projection(6, 5), torch.randn(2, 3, 6)
    out = projection(x)
    out.mul_(3).sum().backward()
    torch.testing.assert_close(projection.weight.grad, 3 * x.flatten(0, 1).sum(0)[:, None].expand(6, 5))


def test_what_a_norm_was_given_may_change_before_a_projection_takes_its_result():
    norm, projection, x = ImageGPTLayerNorm(6), Projection(6, 5), torch.randn(2, 3, 6)
    normed = norm(x)
    kept = normed.detach().clone()
    x.mul_(torch.rand(6))
    (grad,) = torch.autograd.grad(projection(normed).sum(), projection.weight)
    torch.testing.assert_close(grad, kept.flatten(0, 1).sum(0)[:, None].expand(6, 5))


def test_frozen_weights_get_no_gradient():
    model = small_model()
    model.transformer.h[0].requires_grad_(False)
    found = gradients(model)
    assert not [name for name in found if name.startswith("transformer.h.0.")]
    assert any(name.startswith("transformer.h.1.") for name in found)


def test_forward_mode():
    block = small_model().eval().transformer.h[0].double()
    x, along = (torch.randn(1, 4, 32, dtype=torch.float64) for _ in range(2))
    with forward_ad.dual_level():
        moved = forward_ad.unpack_dual(block(forward_ad.make_dual(x, along), attn_implementation="eager")).tangent
    step = 1e-6
    with torch.no_grad():
        ahead, behind = (block(x + sign * step * along, attn_implementation="eager") for sign in (1, -1))
    torch.testing.assert_close(moved, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-7)
