"""The public names, their documentation, and the cost of importing them."""

import importlib
import inspect
import subprocess
import sys

import pytest

import imagegpt

NAMES = {
    "ColorPalette",
    "ImageGPTConfig",
    "ImageGPTFeatureExtractor",
    "ImageGPTForCausalImageModeling",
    "ImageGPTForImageClassification",
    "ImageGPTImageProcessor",
    "ImageGPTModel",
    "ImageGPTPipeline",
    "ImageGPTPreTrainedModel",
    "encode",
    "evaluate",
    "finetune",
    "register",
    "train",
}


def test_the_public_names():
    assert set(imagegpt.__all__) == NAMES
    assert set(dir(imagegpt)) == NAMES | {"__version__"}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_public_name_resolves(name):
    value = getattr(imagegpt, name)
    assert value.__name__ == name
    assert value.__module__.startswith("imagegpt.")


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_public_name_is_documented(name):
    assert len(inspect.getdoc(getattr(imagegpt, name))) > 40


@pytest.mark.parametrize("name", ["encode", "evaluate", "finetune", "train"])
def test_entry_points_document_arguments_result_and_errors(name):
    function = getattr(imagegpt, name)
    documentation = inspect.getdoc(function)
    assert [one for one in inspect.signature(function).parameters if f"{one}: " not in documentation] == []
    for heading in ("Args:", "Returns:", "Raises:"):
        assert heading in documentation, heading


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known():
    with pytest.raises(AttributeError, match="no attribute 'GPT': it offers ColorPalette"):
        imagegpt.GPT  # noqa: B018


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_is_cheap():
    large = "('torch', 'transformers', 'numpy', 'sklearn', 'PIL')"
    code = f"import sys, imagegpt; print([n for n in {large} if n in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_models_do_not_import_the_reference_implementation():
    # `src/` never imports transformers.models.imagegpt; only tests and benchmarks do.
    code = (
        "import sys, imagegpt; imagegpt.ImageGPTConfig;"
        "print([n for n in sys.modules if n.startswith('imagegpt.model')]);"
        "imagegpt.ImageGPTForCausalImageModeling;"
        "print([n for n in sys.modules if n.startswith('transformers.models.imagegpt.modeling')])"
    )
    assert run_python(code).split() == ["[]", "[]"]


def test_version_matches_the_installed_package():
    assert imagegpt.__version__ == importlib.metadata.version("imagegpt")
