"""torch.export, ONNX and full-graph compilation of every model class, by torch and by transformers' own exporters."""

import pytest
import torch
from every_model import (
    EVERY_CLASS,
    EVERY_MODEL,
    EVERY_MODEL_PARTLY_SLOW,
    batch_for,
    gradients_of,
    loss_of,
    main_output,
    model_of,
)

from helpers import image_ids, largest_difference

WITH_TYPES = {"input_ids": image_ids(), "token_type_ids": image_ids(seed=3, sos=False)}


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def other_inputs(batch=2, pixels=16):
    """Inputs other than the traced ones."""
    shape = {"batch": batch, "pixels": pixels}
    return {"input_ids": image_ids(seed=7, **shape), "token_type_ids": image_ids(seed=8, sos=False, **shape)}


@EVERY_MODEL_PARTLY_SLOW
def test_exported_by_torch(model_class, kind):
    model = model_of(model_class, kind)
    program = torch.export.export(model, (), {**WITH_TYPES, "use_cache": False}).module()
    found = main_output(program, other_inputs(), use_cache=False)
    assert largest_difference(found, main_output(model, other_inputs())) < 1e-5


@EVERY_CLASS
def test_exported_in_half_precision_with_padding(model_class, tmp_path):
    model_of(model_class).save_pretrained(tmp_path)
    model = model_class.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    mask = torch.tensor([[0] * 3 + [1] * 13, [1] * 16])
    inputs = {"input_ids": image_ids(), "attention_mask": mask, "use_cache": False}
    found = torch.export.export(model, (), inputs).module()(**inputs)[0]
    expected = model(**inputs)[0]
    seen = mask.bool() if found.ndim == 3 else slice(None)
    assert largest_difference(found[seen], expected[seen]) < 2e-2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.treespec.children_specs. is deprecated:FutureWarning")  # the exporter's
@EVERY_MODEL
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_exported_by_transformers(model_class, kind, dynamic):
    """With the returned cache and, if dynamic, for other numbers of images and pixels."""
    exporters = pytest.importorskip("transformers.exporters.exporter_dynamo")
    model = model_of(model_class, kind)
    program = exporters.DynamoExporter().export(model, WITH_TYPES, config=exporters.DynamoConfig(dynamic=dynamic))
    shapes = [(2, 16), (3, 9)] if dynamic else [(2, 16)]
    for batch, pixels in shapes:
        inputs = other_inputs(batch, pixels)
        with torch.no_grad():
            assert largest_difference(main_output(program, inputs), main_output(model, inputs)) < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@EVERY_CLASS
@pytest.mark.parametrize("kind", ["causal", "bidirectional-no_biases"])
def test_onnx_by_transformers(model_class, kind):
    exporters = pytest.importorskip("transformers.exporters.exporter_onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = model_of(model_class, kind)
    program = exporters.OnnxExporter().export(
        model, {"input_ids": image_ids()}, config=exporters.OnnxConfig(dynamic=True)
    )
    inputs = {"input_ids": image_ids(batch=3, seed=5)}
    with torch.no_grad():
        assert largest_difference(main_output(program, inputs), main_output(model, inputs)) < 1e-5


@pytest.mark.slow
@EVERY_CLASS
def test_training_compiles_to_one_graph(model_class):
    model = model_of(model_class).train()
    inputs = batch_for(model)
    expected_loss, expected = gradients_of(model, inputs)
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    loss = loss_of(compiled, {**inputs, "use_cache": False})
    loss.backward()
    assert largest_difference(loss, expected_loss) < 1e-6
    for name, parameter in model.named_parameters():
        assert largest_difference(parameter.grad, expected[name]) < 1e-6, name


@pytest.mark.slow
@EVERY_MODEL
def test_generated_code_trains_the_same(model_class, kind):
    model = model_of(model_class, kind).train()
    inputs = batch_for(model)
    expected_loss, expected = gradients_of(model, inputs)
    model.zero_grad()
    loss = loss_of(torch.compile(model, fullgraph=True), {**inputs, "use_cache": False})
    loss.backward()
    assert largest_difference(loss, expected_loss) < 1e-5
    for name, parameter in model.named_parameters():
        assert largest_difference(parameter.grad, expected[name]) < 1e-5, name


@pytest.mark.slow
@EVERY_CLASS
def test_generated_code_for_dynamic_lengths_with_padding(model_class):
    """Masks of several lengths in one compiled graph, as transformers requires of sdpa."""
    model = model_of(model_class)
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for pixels in (16, 9, 5):
        inputs = {"input_ids": image_ids(pixels=pixels), "use_cache": False}
        inputs["attention_mask"] = torch.ones(2, pixels, dtype=torch.long)
        inputs["attention_mask"][1, :2] = 0
        with torch.no_grad():
            found, expected = main_output(compiled, inputs), main_output(model, inputs)
        seen = inputs["attention_mask"].bool() if found.ndim == 3 else slice(None, 1)
        assert largest_difference(found[seen], expected[seen]) < 1e-5
