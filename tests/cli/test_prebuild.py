"""Kernels are compiled while torch is imported; whatever goes wrong is told later, by whoever needs them."""

import threading

import pytest

from imagegpt.cli import _prebuild
from imagegpt.kernels.step import Kind, step_library


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
        ("digits", None, None, (Kind.FLOAT32, 16)),
        ("digits", "int8", "cpu", (Kind.INT8, 16)),
        ("cifar10", "bfloat16", None, (Kind.BFLOAT16, 64)),
        ("digits", "auto", None, None),
        ("digits", None, "cuda", None),
        ("nothing", None, None, None),
        ("openai/imagegpt-small", None, None, None),
    ],
)
def test_what_is_built(built, model, precision, device, expected):
    _prebuild.build_ahead(model, precision, device)
    wait()
    assert built == ([] if expected is None else [step_library(*expected)])


def test_a_compiler_that_fails_is_told_later(monkeypatch):
    def fail(_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(_prebuild, "find_or_build", fail)
    _prebuild.build_ahead("digits", None, None)
    wait()
