"""Tensors without readable values: fake and meta tensors, `torch.func`, `make_fx`."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from helpers import image_ids, tiny_config, tiny_model
from imagegpt import ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTModel
from imagegpt.model import cost, tracing

CLASSES = [ImageGPTModel, ImageGPTForCausalImageModeling, ImageGPTForImageClassification]


def inputs_for(model_class, ids, **more):
    labels = {
        ImageGPTModel: {},
        ImageGPTForCausalImageModeling: {"labels": ids},
        ImageGPTForImageClassification: {"labels": torch.zeros_like(ids[:, 0])},
    }[model_class]
    return {**labels, **more}


def with_everything(model_class):
    """Inputs with every argument whose values are checked."""
    ids = image_ids()
    more = {
        "position_ids": torch.arange(16).expand(2, -1),
        "token_type_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "use_cache": False,
    }
    return ids, inputs_for(model_class, ids, **more)


def test_can_read_values():
    can_read_values = tracing.can_read_values
    x = torch.ones(2)
    assert can_read_values(x)
    assert not can_read_values(torch.ones(0))
    assert not can_read_values(torch.ones(2, device="meta"))
    with FakeTensorMode() as mode:
        assert not can_read_values(torch.ones(2))
    assert not can_read_values(mode.from_tensor(x))
    seen = []
    torch.func.vmap(lambda x: seen.append(can_read_values(x)) or x)(x)
    make_fx(lambda x: seen.append(can_read_values(x)) or x)(x)
    assert seen == [False, False]


@pytest.mark.parametrize("backend", ["eager", "sdpa", "kernels"])
@pytest.mark.parametrize("model_class", CLASSES)
def test_fake_tensors(model_class, backend, with_training_kernels):
    """Construction, forward and backward without memory."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = model_class(tiny_config(num_labels=3)).train()
        model.set_attn_implementation(backend)
        ids, more = with_everything(model_class)
        outputs = model(ids, **more)
        outputs[0].sum().backward()
        assert model.get_input_embeddings().weight.grad.shape == (17, 32)
    if model_class is ImageGPTForCausalImageModeling:
        assert outputs.logits.shape == (2, 16, 16)


def test_fake_tensors_with_a_cache_and_kept_logits():
    with FakeTensorMode():
        model, ids = ImageGPTForCausalImageModeling(tiny_config()).eval(), image_ids()
        first = model(ids[:, :7], use_cache=True)
        chosen = torch.tensor([0, 3])
        second = model(ids[:, 7:], past_key_values=first.past_key_values, logits_to_keep=chosen)
        assert second.logits.shape == (2, 2, 16)


def test_fake_models_are_pruned_and_resized():
    with FakeTensorMode():
        model = ImageGPTForCausalImageModeling(tiny_config())
        model.prune_heads({0: [1]})
        model.resize_token_embeddings(30)
        model.resize_position_embeddings(25)
        assert model(torch.zeros(1, 25, dtype=torch.long)).logits.shape == (1, 25, 29)


@pytest.mark.parametrize("model_class", CLASSES)
def test_meta_tensors(model_class):
    with torch.device("meta"):
        model = model_class(tiny_config(num_labels=3))
        model.prune_heads({0: [1]})
        model.resize_token_embeddings(30)
        model.resize_position_embeddings(25)
    model.set_attn_implementation("eager")  # for others transformers looks whether the mask hides anything
    ids, more = with_everything(model_class)
    moved = {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in more.items()}
    assert model(ids.to("meta"), **moved)[0].device.type == "meta"


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # no batching rule of torch's attention
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("model_class", CLASSES)
def test_gradients_of_each_image(model_class, backend):
    model = tiny_model(model_class, num_labels=3, backend=backend)
    weights, ids = dict(model.named_parameters()), image_ids()

    def loss(weights, ids):
        more = inputs_for(model_class, ids[None], use_cache=False)
        return torch.func.functional_call(model, weights, (ids[None],), more)[0].sum()

    together = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, ids)
    for index, image in enumerate(ids):
        alone = torch.autograd.grad(loss(weights, image), [*weights.values()], allow_unused=True)
        for name, grad in zip(weights, alone, strict=True):
            if grad is not None:
                torch.testing.assert_close(together[name][index], grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("model_class", CLASSES)
def test_recorded_graphs(model_class, mode):
    model = tiny_model(model_class, num_labels=3)
    ids, more = image_ids(), inputs_for(model_class, image_ids(), use_cache=False)
    call = torch.no_grad()(lambda ids: model(ids, **more)[0])
    # Under fake tensors the weights and labels are real.
    graph = make_fx(call, tracing_mode=mode, _allow_non_fake_inputs=True)(ids)
    other = image_ids(seed=5)
    torch.testing.assert_close(graph(other), call(other))


@pytest.mark.parametrize("model_class", CLASSES)
def test_export_with_labels(model_class):
    model = tiny_model(model_class, num_labels=3)
    ids, more = with_everything(model_class)
    program = torch.export.export(model, (ids,), more)
    torch.testing.assert_close(program.module()(ids, **more)[0], model(ids, **more)[0])


def test_training_flops_are_fully_counted():
    """torch's counter sees every matrix product, in spite of our own autograd functions."""
    model = tiny_model(backend="eager").train()
    with FlopCounterMode(display=False) as counter:
        model(image_ids(), labels=image_ids()).loss.backward()
    assert counter.get_total_flops() == pytest.approx(3 * 2 * cost.forward_flops(model.config), rel=0.01)


def test_values_are_checked_when_readable():
    with pytest.raises(ValueError, match="input_ids contains 17"):
        tiny_model()(torch.full((1, 3), 17))
