"""Kernels are compiled while torch is imported; errors are left to the code that needs the kernels."""

import threading

import pytest

from imagegpt.cli import _prebuild
from imagegpt.kernels.step import DType, step_library


@pytest.fixture
def built(monkeypatch):
    asked = []
    monkeypatch.setattr(_prebuild, "find_or_build", asked.append)
    return asked


def wait():
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and "_build" in thread.name:
            thread.join()


@pytest.mark.parametrize(
    ("model", "precision", "device", "expected"),
    [
        ("digits", None, None, (DType.FLOAT32, 16)),
        ("digits", "int8", "cpu", (DType.INT8, 16)),
        ("cifar10", "bfloat16", None, (DType.BFLOAT16, 64)),
        ("digits", "auto", None, None),
        ("digits", None, "cuda", None),
        ("nothing", None, None, None),
        ("openai/imagegpt-small", None, None, None),
    ],
)
def test_kernels_are_built_for_the_model_and_precision(built, model, precision, device, expected):
    _prebuild.prebuild_kernels(model, precision, device)
    wait()
    assert built == ([] if expected is None else [step_library(*expected)])


def test_compiler_errors_are_ignored(monkeypatch):
    def fail(_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(_prebuild, "find_or_build", fail)
    _prebuild.prebuild_kernels("digits", None, None)
    wait()
