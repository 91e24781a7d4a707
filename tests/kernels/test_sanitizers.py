"""The kernel tests under the address and undefined-behaviour sanitizers."""

import subprocess
from pathlib import Path

import pytest

from imagegpt.kernels.compiler import _compiler

FLAGS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
CHOSEN = {
    # The step in all precisions, at odd sizes, with shared prompts and pruned heads; and redrafting.
    "test_step_kernel.py": "sizes and (of_3 or of_33) or prompts or variants or drafts",
    # Attention forward and backward, causal and not, at odd sizes and strides, with one and three threads.
    "test_attention_kernels.py": "attention_and_its_gradients or more_keys or strides or threads or single_position",
}


@pytest.mark.slow
@pytest.mark.parametrize("file", CHOSEN)
def test_kernels_under_the_address_and_undefined_behaviour_sanitizers(file, run_with_flags):
    found = [
        subprocess.run([_compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
        for name in ("libasan.so", "libstdc++.so.6")  # the second, so that ASan intercepts its exceptions
    ]
    preload = " ".join(path.strip() for path in found)
    environment = {"LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0"}
    run_with_flags(str(Path(__file__).with_name(file)), CHOSEN[file], FLAGS, **environment)
