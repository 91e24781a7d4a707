"""Compiling the kernels of a model while torch is being imported, which takes as long and one core."""

import contextlib
import threading

from imagegpt.checkpoints.registry import CONFIG_FILE, resolve
from imagegpt.files.schemas import read_json
from imagegpt.kernels.compiler import find_or_build
from imagegpt.kernels.step import Kind, step_library

_KINDS = {None: Kind.FLOAT32, "float32": Kind.FLOAT32, "bfloat16": Kind.BFLOAT16, "int8": Kind.INT8}


def build_ahead(model: str, precision: str | None, device: str | None) -> None:
    """Begin to compile what sampling a model will need, if that is known already; mistakes are left for later to tell.

    Args:
        model: as the user named it.
        precision: likewise; "auto" is not known before torch is there.
        device: likewise.
    """
    if precision in _KINDS and (device is None or device == "cpu"):
        threading.Thread(target=_build, args=(model, _KINDS[precision])).start()


def _build(model: str, kind: Kind) -> None:
    with contextlib.suppress(Exception):
        folder = resolve(model).folder
        if folder is not None:
            config = read_json(folder / CONFIG_FILE)
            if config.get("is_causal", True):
                find_or_build(step_library(kind, config["n_embd"] // config["n_head"]))
