"""torch.compile without graph breaks, torch.export, ONNX, and captured outputs with each of them.

Graph breaks and recompilations are facts of tracing, so most tests trace only (backend "eager", a second each); those
that generate code are marked slow.
"""

import io

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import StaticCache

from helpers import image_ids, largest_difference, tiny_model
from imagegpt import ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTModel

OPTIONS = {
    "default": {},
    "bidirectional": {"is_causal": False},
    "no_biases_inverse_layer": {"use_bias": False, "scale_attn_by_inverse_layer_idx": True},
    "upcast": {"reorder_and_upcast_attn": True},
    "exact_gelu": {"activation_function": "gelu"},
}


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


# --- torch.compile ---


@pytest.mark.parametrize("backend", [pytest.param("eager", marks=pytest.mark.slow), "sdpa"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_forward_is_one_graph(options, backend):
    model = tiny_model(backend=backend, **options)
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        logits = compiled(image_ids(), use_cache=False).logits
    assert counter.frame_count == 1
    assert largest_difference(logits, model(image_ids()).logits) < 1e-5


@pytest.mark.parametrize("inputs", ["padding", "labels", "hidden_states", "some_hidden_states", "attentions", "cache"])
def test_forward_with_more_inputs_and_outputs_is_one_graph(inputs):
    arguments = {
        "padding": {"attention_mask": torch.tensor([[0] * 4 + [1] * 12, [1] * 16]), "use_cache": False},
        "labels": {"labels": image_ids(), "use_cache": False},
        "hidden_states": {"output_hidden_states": True, "use_cache": False},
        "some_hidden_states": {"output_hidden_states": [1], "use_cache": False},
        "attentions": {"output_attentions": True, "use_cache": False},
        "cache": {"use_cache": True},
    }[inputs]
    model = tiny_model(backend="eager" if inputs == "attentions" else "sdpa")
    expected = model(image_ids(), **arguments)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        outputs = compiled(image_ids(), **arguments)
    rows = arguments["attention_mask"].bool() if inputs == "padding" else slice(None)
    assert largest_difference(outputs.logits[rows], expected.logits[rows]) < 1e-5
    if inputs == "labels":
        assert largest_difference(outputs.loss, expected.loss) < 1e-6
    if inputs in ("hidden_states", "some_hidden_states"):
        assert_same_states(outputs.hidden_states, expected.hidden_states)
    if inputs == "attentions":
        assert_same_states(outputs.attentions, expected.attentions)
    if inputs == "cache":
        keys = [layer.keys for layer in outputs.past_key_values.layers]
        assert_same_states(keys, [layer.keys for layer in expected.past_key_values.layers])


def assert_same_states(ours, expected):
    assert len(ours) == len(expected)
    for a, b in zip(ours, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or largest_difference(a, b) < 1e-5


@pytest.mark.parametrize("model_class", [ImageGPTModel, ImageGPTForImageClassification])
def test_other_model_classes_are_one_graph(model_class):
    model = tiny_model(model_class)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert largest_difference(compiled(image_ids(), use_cache=False)[0], model(image_ids())[0]) < 1e-5


def test_training_step_is_one_graph():
    model, plain = tiny_model().train(), tiny_model().train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(image_ids(), labels=image_ids(), use_cache=False).loss.backward()
    plain(image_ids(), labels=image_ids()).loss.backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert largest_difference(a.grad, b.grad) < 1e-6


def test_cross_attention_is_one_graph():
    model = tiny_model(add_cross_attention=True)
    inputs = {"encoder_hidden_states": torch.randn(2, 5, 32), "use_cache": False}
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert largest_difference(compiled(image_ids(), **inputs).logits, model(image_ids(), **inputs).logits) < 1e-5


def decode(model, step, ids, prompt):
    """Logits of all positions through a static cache, the prompt at once and then pixel by pixel."""
    cache = StaticCache(config=model.config, max_cache_len=16)
    logits = [model(ids[:, :prompt], past_key_values=cache).logits]
    pixels = ids[:, prompt:].split(1, dim=1)
    logits += [step(pixel, past_key_values=cache).logits.clone() for pixel in pixels]
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_generation_steps_are_one_graph(backend):
    """With a static cache: one compilation per pixel would take seconds each."""
    model = tiny_model(backend=backend)
    counter = CompileCounter()
    step = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        logits = decode(model, step, image_ids(), prompt=4)
        assert counter.frame_count == 1
        assert largest_difference(logits, model(image_ids()).logits) < 1e-5
        decode(model, step, image_ids(seed=1), prompt=7)  # another image, another prompt
    assert counter.frame_count == 1


def test_lengths_are_dynamic():
    model = tiny_model()
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        for pixels in range(3, 14):
            compiled(image_ids(pixels=pixels), use_cache=False)
    assert counter.frame_count <= 3


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_compiled_forward_matches_eager(backend):
    model = tiny_model(backend=backend)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        expected = model(image_ids()).logits
        assert largest_difference(compiled(image_ids(), use_cache=False).logits, expected) < 1e-5
        assert largest_difference(decode(model, compiled, image_ids(), prompt=4), expected) < 1e-5


@pytest.mark.slow
def test_generated_code_trains_the_same():
    model, plain = tiny_model().train(), tiny_model().train()
    torch.compile(model, fullgraph=True)(image_ids(), labels=image_ids(), use_cache=False).loss.backward()
    plain(image_ids(), labels=image_ids()).loss.backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert largest_difference(a.grad, b.grad) < 1e-5


# --- torch.export ---


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_export(options):
    model = tiny_model(**options)
    program = torch.export.export(model, (image_ids(),), {"use_cache": False})
    other = image_ids(seed=5)
    assert largest_difference(program.module()(other, use_cache=False).logits, model(other).logits) < 1e-5


def test_export_with_dynamic_batch_and_length():
    model = tiny_model()
    images, pixels = torch.export.Dim("images", min=1, max=64), torch.export.Dim("pixels", min=2, max=16)
    program = torch.export.export(
        model, (), {"input_ids": image_ids(), "use_cache": False},
        dynamic_shapes={"input_ids": {0: images, 1: pixels}, "use_cache": None},
    )  # fmt: skip
    for batch, length in ((1, 16), (5, 3), (3, 9)):
        ids = image_ids(batch=batch, pixels=length)
        logits = program.module()(input_ids=ids, use_cache=False).logits
        assert largest_difference(logits, model(ids).logits) < 1e-5


def test_export_saves_and_loads(tmp_path):
    model = tiny_model(ImageGPTForImageClassification, num_labels=3)
    program = torch.export.export(model, (image_ids(),), {"use_cache": False})
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    assert largest_difference(loaded(image_ids(seed=2), use_cache=False).logits, model(image_ids(seed=2)).logits) < 1e-5


class LogitsAlone(torch.nn.Module):
    """A wrapper, because ONNX supports neither model outputs nor optional arguments."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model(input_ids, use_cache=False).logits


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("model_class", [ImageGPTForCausalImageModeling, ImageGPTForImageClassification])
def test_onnx(model_class):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = tiny_model(model_class)
    images = torch.export.Dim("images", min=1, max=64)
    program = torch.onnx.export(
        LogitsAlone(model).eval(), (image_ids(),), dynamo=True, dynamic_shapes=({0: images},), verbose=False
    )
    buffer = io.BytesIO()
    program.save(buffer)
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    for batch in (2, 5):
        ids = image_ids(batch=batch, seed=4)
        (logits,) = session.run(None, {session.get_inputs()[0].name: ids.numpy()})
        assert largest_difference(torch.as_tensor(logits), model(ids).logits) < 1e-5


# --- Recorded outputs, without compiling ---


@pytest.mark.parametrize("model_class", [ImageGPTModel, ImageGPTForCausalImageModeling, ImageGPTForImageClassification])
def test_hidden_states_are_block_inputs_and_final_norm(model_class):
    model = tiny_model(model_class, n_layer=3, shift_inputs=False)
    entered = []
    for block in model.base_model.h:
        block.register_forward_hook(lambda module, args, output: entered.append(args[0].clone()))
    states = model(image_ids(), output_hidden_states=True).hidden_states
    assert len(states) == 4
    assert all(largest_difference(a, b) == 0 for a, b in zip(states[:3], entered, strict=True))
    features = model.base_model(image_ids()).last_hidden_state
    assert largest_difference(states[-1], features) == 0


@pytest.mark.parametrize("wanted", [[0], [1, 3], [-1], 2, [-2, 0]], ids=str)
def test_hidden_states_by_index(wanted):
    model = tiny_model(n_layer=3)
    everything = model(image_ids(), output_hidden_states=True).hidden_states
    chosen = model(image_ids(), output_hidden_states=wanted).hidden_states
    indices = {i % 4 for i in (wanted if isinstance(wanted, list) else [wanted])}
    assert len(chosen) == 4
    for index, state in enumerate(chosen):
        assert (state is not None) == (index in indices)
        assert state is None or largest_difference(state, everything[index]) == 0


def test_outputs_requested_by_config():
    model = tiny_model(output_hidden_states=True, backend="eager")
    assert len(model(image_ids()).hidden_states) == 3
    assert model(image_ids(), output_hidden_states=False).hidden_states is None


def test_states_are_not_captured_by_default():
    outputs = tiny_model()(image_ids())
    assert outputs.hidden_states is None
    assert outputs.attentions is None
    assert outputs.cross_attentions is None
