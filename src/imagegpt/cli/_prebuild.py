"""Compile the kernels of a model in the background while torch is imported: both take seconds and one core."""

import contextlib
import threading

from imagegpt.checkpoints.registry import CONFIG_FILE, find_local_folder
from imagegpt.files.schemas import read_json
from imagegpt.kernels.compiler import find_or_build
from imagegpt.kernels.step import DType, step_library

_DTYPES = {None: DType.FLOAT32, "float32": DType.FLOAT32, "bfloat16": DType.BFLOAT16, "int8": DType.INT8}


def prebuild_kernels(model: str, precision: str | None, device: str | None) -> None:
    """Start compiling the kernels for sampling, in a thread. Errors are left to the code that needs the kernels.

    Args:
        model: as the user named it.
        precision: as the user chose it; nothing is compiled for "auto", which needs torch to resolve.
        device: as the user chose it; nothing is compiled for GPUs.
    """
    if precision in _DTYPES and (device is None or device == "cpu"):
        threading.Thread(target=_build, args=(model, _DTYPES[precision])).start()


def _build(model: str, dtype: DType) -> None:
    with contextlib.suppress(Exception):
        folder = find_local_folder(model)
        if folder is not None:
            config = read_json(folder / CONFIG_FILE)
            if config.get("is_causal", True):
                find_or_build(step_library(dtype, config["n_embd"] // config["n_head"]))
