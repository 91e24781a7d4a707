"""Training that keeps little: the gradients are those of torch's own operations."""

import weakref

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling
from imagegpt.kernels import training as kernels
from imagegpt.model import lean
from imagegpt.model.layers import ImageGPTLayerNorm, Projection, QuickGELU


@pytest.fixture(params=[False, True], ids=["torch", "kernels"])
def _kernels(request, monkeypatch):
    """With our kernels, and as if there were none."""
    if request.param:
        request.getfixturevalue("with_training_kernels")
    monkeypatch.setattr(kernels, "is_loaded", lambda: request.param)
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


# --- No notes on tensors ---


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize("training", [True, False])
def test_features_can_be_saved_and_loaded_again(training, tmp_path):
    """Notes of how a tensor was made were pickled with it, and `weights_only` refused them."""
    model = small_model().train(training)
    outputs = model(torch.zeros(1, 16, dtype=torch.long), output_hidden_states=True)
    body = model.transformer(torch.zeros(1, 16, dtype=torch.long))
    tensors = [body.last_hidden_state, outputs.logits, *outputs.hidden_states]
    torch.save(tensors, tmp_path / "tensors.pt")
    for loaded, tensor in zip(torch.load(tmp_path / "tensors.pt", weights_only=True), tensors, strict=True):
        assert torch.equal(loaded, tensor)


@pytest.mark.usefixtures("_kernels")
def test_no_tensor_carries_an_attribute():
    seen = []
    model = small_model(add_cross_attention=True)
    for module in model.modules():
        module.register_forward_hook(lambda module, given, out: seen.extend(x for x in (*given, out)))
    model(torch.zeros(2, 16, dtype=torch.long), encoder_hidden_states=torch.randn(2, 3, 32, requires_grad=True))
    tensors = [x for x in seen if isinstance(x, torch.Tensor)]
    assert len(tensors) > 50
    assert not [vars(x) for x in tensors if vars(x)]


def test_a_projection_finds_the_input_of_a_norm_and_an_activation_without_hooks():
    """Where torch alone keeps it alive."""
    block = small_model().transformer.h[0]
    out = block(torch.randn(2, 16, 32, requires_grad=True), attn_implementation="sdpa")
    kept, seen, nodes = [], set(), [out.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
        if type(node).__name__ == "_ProductBackward":
            kept.append([tuple(tensor.shape) for tensor in node.saved_tensors[2:]])
    # The activation's input; the norms' inputs and gains; the mixed values, which no norm gave.
    assert sorted(kept) == sorted([[(2, 16, 128)], [(2, 16, 32), (32,)], [(2, 16, 32), (32,)], [(2, 16, 32)]])


def test_what_a_projection_found_does_not_outlive_the_forward_pass():
    """Checkpointing drops what was kept: nothing else may hold it."""
    norm, projection = ImageGPTLayerNorm(6), Projection(6, 5)
    x = torch.randn(2, 3, 6, requires_grad=True) * 1
    gone = weakref.ref(x)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach().clone(), lambda tensor: tensor):
        out = projection(norm(x))
    del x
    assert gone() is None
    out.sum().backward()
    assert projection.weight.grad.isfinite().all()


# --- float16 ---


@pytest.mark.parametrize("path", ["no_grad", "training", "graph", "functional", "compiled"])
def test_activation_of_large_numbers_in_float16(path):
    """1.702 x is infinite from 38,497 on: the activation was infinite, its gradient not a number."""
    values = torch.tensor([38_496.0, 38_528.0, 65_504.0, -38_528.0, -65_504.0, 1.0, 0.0])
    x = values.half().requires_grad_(path != "no_grad")
    exact = values.double().requires_grad_()
    expected = exact * torch.sigmoid(1.702 * exact)
    activation = QuickGELU()
    if path == "functional":
        grad = torch.func.grad(lambda x: activation(x).float().sum())(x)
        out = activation(x)
    else:
        call = torch.compile(activation, backend="aot_eager") if path == "compiled" else activation
        with torch.set_grad_enabled(path != "no_grad"):
            out = call(x)
        if path != "no_grad":
            (grad,) = torch.autograd.grad(out.float().sum(), x, create_graph=path == "graph")
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.double(), expected, rtol=1e-3, atol=1e-6)
    if path != "no_grad":
        slope = torch.autograd.grad(expected.sum(), exact)[0]
        torch.testing.assert_close(grad.double(), slope, rtol=1e-3, atol=1e-6)


def test_training_in_float16_with_large_activations():
    mlp = small_model(resid_pdrop=0.0).transformer.h[0].mlp.half()
    with torch.no_grad():
        mlp.c_fc.weight.zero_()
        mlp.c_fc.bias.fill_(60_000)
        mlp.c_proj.weight.mul_(1e-3)
    x = torch.randn(1, 2, 32, dtype=torch.float16, requires_grad=True)
    out = mlp(x)
    out.float().mean().backward()
    found = [out, x.grad, *(weight.grad for weight in mlp.parameters())]
    assert all(tensor.isfinite().all() for tensor in found)


# --- Gradients of gradients ---


def double_backward(model, precision=torch.float32):
    """The gradient of the squared norm of the gradients."""
    ids = torch.randint(10, (2, 16), generator=torch.Generator().manual_seed(1))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        loss = nn.functional.cross_entropy(model(ids).logits.flatten(0, 1).float(), ids.flatten())
    grads = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
    penalty = sum(grad.float().square().sum() for grad in grads if grad is not None)
    return torch.autograd.grad(penalty, weights, allow_unused=True)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("backend", ["kernels", "eager"])
@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_double_backward_of_every_backend(backend, precision, tolerance, is_causal, with_training_kernels):
    """With our attention it was wrong by 13 to 63 %: its gradient was taken for a constant."""
    if backend == "kernels" and precision == torch.bfloat16 and not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("this processor does not multiply pairs of bfloat16, and torch's attention says it cannot")
    options = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "is_causal": is_causal}
    model, exact = small_model(**options), small_model(**options).double()
    model.set_attn_implementation(backend)
    exact.set_attn_implementation("eager")
    pairs = zip(double_backward(model, precision), double_backward(exact), strict=True)
    known = [(mine, expected) for mine, expected in pairs if expected is not None]
    error = sum((mine.double() - expected).square().sum() for mine, expected in known)
    assert error.sqrt() <= tolerance * sum(expected.square().sum() for _, expected in known).sqrt()


def test_double_backward_that_torch_has_not_is_an_error():
    model = small_model(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match=r"derivative for .* is not implemented"):
        double_backward(model)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # no batching rule of torch's attention
@pytest.mark.parametrize("backend", ["kernels", "eager", "sdpa"])
def test_functional_transforms(backend, with_training_kernels):
    """Gradients of each image by `vmap(grad(...))` are those of a loop."""
    model = small_model(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model.set_attn_implementation(backend)
    ids = torch.randint(10, (3, 16), generator=torch.Generator().manual_seed(1))
    weights = dict(model.named_parameters())

    def loss(weights, ids):
        return torch.func.functional_call(model, weights, (ids[None],), {"labels": ids[None], "use_cache": False}).loss

    together = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, ids)
    for index, image in enumerate(ids):
        alone = torch.autograd.grad(loss(weights, image), list(weights.values()))
        for name, grad in zip(weights, alone, strict=True):
            torch.testing.assert_close(together[name][index], grad, rtol=1e-3, atol=1e-6)
