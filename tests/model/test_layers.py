"""The layers with torch's features: gradients of all kinds, half precision, serialisation."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling
from imagegpt.model.layers import ImageGPTLayerNorm, Projection, QuickGELU


def small_model(**options):
    torch.manual_seed(0)
    fields = {"vocab_size": 11, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
    return ImageGPTForCausalImageModeling(ImageGPTConfig(**fields, **options)).train()


def gradients(model):
    model.zero_grad()
    ids = torch.randint(10, (3, 16), generator=torch.Generator().manual_seed(1))
    nn.functional.cross_entropy(model(ids).logits.flatten(0, 1).float(), ids.flatten()).backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


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


def test_projection_output_can_be_modified_in_place():
    projection, x = Projection(6, 5), torch.randn(2, 3, 6)
    out = projection(x)
    out.mul_(3).sum().backward()
    torch.testing.assert_close(projection.weight.grad, 3 * x.flatten(0, 1).sum(0)[:, None].expand(6, 5))


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


@pytest.mark.parametrize("training", [True, False])
def test_features_can_be_saved_and_loaded(training, tmp_path):
    model = small_model().train(training)
    outputs = model(torch.zeros(1, 16, dtype=torch.long), output_hidden_states=True)
    body = model.transformer(torch.zeros(1, 16, dtype=torch.long))
    tensors = [body.last_hidden_state, outputs.logits, *outputs.hidden_states]
    torch.save(tensors, tmp_path / "tensors.pt")
    for loaded, tensor in zip(torch.load(tmp_path / "tensors.pt", weights_only=True), tensors, strict=True):
        assert torch.equal(loaded, tensor)


def test_no_tensor_carries_an_attribute():
    seen = []
    model = small_model(add_cross_attention=True)
    for module in model.modules():
        module.register_forward_hook(lambda module, given, out: seen.extend(x for x in (*given, out)))
    model(torch.zeros(2, 16, dtype=torch.long), encoder_hidden_states=torch.randn(2, 3, 32, requires_grad=True))
    tensors = [x for x in seen if isinstance(x, torch.Tensor)]
    assert len(tensors) > 50
    assert not [vars(x) for x in tensors if vars(x)]


# --- float16 ---


@pytest.mark.parametrize("path", ["no_grad", "training", "graph", "functional", "compiled"])
def test_activation_of_large_numbers_in_float16(path):
    """Regression: from 38,497 on 1.702 x overflowed, the activation was inf and its gradient nan."""
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
    """Regression: with our attention it was off by 13 to 63 %, its gradient being treated as a constant."""
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


def test_double_backward_unsupported_by_torch_is_an_error():
    model = small_model(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match=r"derivative for .* is not implemented"):
        double_backward(model)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # no batching rule of torch's attention
@pytest.mark.parametrize("backend", ["kernels", "eager", "sdpa"])
def test_functional_transforms(backend, with_training_kernels):
    """Per-image gradients from `vmap(grad(...))` equal those of a loop."""
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
