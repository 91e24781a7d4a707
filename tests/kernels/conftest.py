"""Fixtures to run kernel tests with other compiler flags."""

import os
import platform
import subprocess
import sys

import pytest
import torch


@pytest.fixture
def run_with_flags(tmp_path):
    """Run selected tests of a file in a subprocess, with additional compiler flags for the kernels."""

    def run(file, chosen, flags, *, lines="", **environment):
        (tmp_path / "choose_flags.py").write_text(
            "import torch\n"
            "def pytest_configure():\n"
            "    from imagegpt.kernels import compiler\n"
            f"    compiler._FLAGS += {flags!r}\n"
            f"{lines}"
        )
        options = ["-q", "-x", "-p", "choose_flags", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "inner")]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, "-k", f"({chosen}) and not processors", file],
            env=os.environ | {"PYTHONPATH": str(tmp_path), "PYTEST_ADDOPTS": "", **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert " passed" in done.stdout
        return done.stdout

    return run


@pytest.fixture(params=["x86-64", "x86-64-v3", "x86-64-v4"])
def run_for_processor(request, run_with_flags):
    """Run selected tests of a file with kernels for another CPU, with SIMD vectors of 4, 8 and 16 floats."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("needs an x86 CPU")
    level = request.param
    if level == "x86-64-v3" and not torch.cpu._is_avx2_supported():
        pytest.skip("this CPU has no AVX2")
    if level == "x86-64-v4" and not torch.cpu._is_avx512_supported():
        pytest.skip("this CPU has no AVX-512")
    return lambda file, chosen, lines="": run_with_flags(file, chosen, (f"-march={level}",), lines=lines)
