"""The names users import, and what importing them costs."""

import importlib
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
    "register",
}


def test_the_public_names():
    assert set(imagegpt.__all__) == NAMES
    assert set(dir(imagegpt)) == NAMES | {"__version__"}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_name_resolves(name):
    value = getattr(imagegpt, name)
    assert value.__name__ == name
    assert value.__module__.startswith("imagegpt.")


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known():
    with pytest.raises(AttributeError, match="no attribute 'GPT': it offers ColorPalette"):
        imagegpt.GPT  # noqa: B018


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_imports_nothing_large():
    large = "('torch', 'transformers', 'numpy', 'sklearn', 'PIL')"
    code = f"import sys, imagegpt; print([n for n in {large} if n in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_the_configuration_needs_no_models_and_the_models_no_reference():
    # `src/` stands without transformers.models.imagegpt; tests and benchmarks alone may look at it.
    code = (
        "import sys, imagegpt; imagegpt.ImageGPTConfig;"
        "print([n for n in sys.modules if n.startswith('imagegpt.model')]);"
        "imagegpt.ImageGPTForCausalImageModeling;"
        "print([n for n in sys.modules if n.startswith('transformers.models.imagegpt.modeling')])"
    )
    assert run_python(code).split() == ["[]", "[]"]


def test_version_is_that_of_the_installed_package():
    assert imagegpt.__version__ == importlib.metadata.version("imagegpt")
