"""Run by `test_booby_traps` in a child process: opens files and reports actions that opening data must not cause.

Usage: opening.py JOBS, a JSON list of (kind, clean file or folder, the same with a trap).

The clean file is opened first, without watching, so that the modules it needs are already imported.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from helpers import tiny_model
from imagegpt import ColorPalette, ImageGPTForCausalImageModeling, ImageGPTImageProcessor
from imagegpt.checkpoints.listing import list_tensors
from imagegpt.checkpoints.loading import load_config, load_model, load_processor
from imagegpt.data.encoded import EncodedDataset
from imagegpt.data.sources.registry import open_images
from imagegpt.images.reading import read_image
from imagegpt.training.checkpoint import Checkpoints
from imagegpt.training.distributed import DistributedContext
from imagegpt.training.ema import ExponentialMovingAverage
from imagegpt.training.optimizers import build_optimizers
from imagegpt.training.recipe_io import parse_recipe, read_recipe

ALONE = DistributedContext(torch.device("cpu"))
RECIPE = (
    "model: {n_layer: 2, n_embd: 32, n_head: 4}\ndata: {train: digits}\ntraining: {num_steps: 5, warmup_steps: 1}\n"
)
WATCHED = (
    "import", "pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn", "pty.spawn",
    "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind", "urllib.Request", "ctypes.dlopen",
    "cpython.run_file", "cpython.run_command", "webbrowser.open",
)  # fmt: skip
seen: list[str] = []
is_watching = False


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: Python calls it before certain actions."""
    if is_watching and event in WATCHED:
        seen.append(f"{event} {arguments[:1]}")


def run() -> tuple[Any, ...]:
    """Objects that a training checkpoint restores."""
    model = tiny_model()
    optimizers = build_optimizers(model, parse_recipe(yaml.safe_load(RECIPE)).training)
    return model, optimizers, ExponentialMovingAverage(model, 0.5).weights


def resume(path: Path) -> None:
    """Load the newest checkpoint of a run."""
    checkpoints = Checkpoints(path, ALONE, 1)
    newest = checkpoints.newest()
    assert newest is not None
    checkpoints.load(newest, *run())


def load(path: Path) -> None:
    """Load a model and its processor strictly."""
    load_processor(path, load_config(path))
    load_model(path)


OPENERS = {
    "checkpoint": resume,
    "encoded": lambda path: EncodedDataset(path).read([0]),
    "pictures": lambda path: read_image(open_images(path)[0].image, (255, 255, 255)),
    "images": lambda path: open_images(path)[0],
    "list": lambda path: list_tensors(str(path)),
    "model": load,
    "palette": ColorPalette.load,
    "processor": ImageGPTImageProcessor.from_pretrained,
    "recipe": read_recipe,
    "transformers": ImageGPTForCausalImageModeling.from_pretrained,
}


def opened(kind: str, path: Path) -> str:
    """Open a file or folder; return the error message, if any."""
    try:
        OPENERS[kind](path)
    except Exception as error:  # noqa: BLE001 - the test looks at what it is
        return f"{type(error).__name__}: {error}"
    return ""


def main() -> None:
    global is_watching
    sys.addaudithook(watch)
    for kind, clean, trapped in json.loads(sys.argv[1]):
        report = {"clean": opened(kind, Path(clean))}
        seen.clear()
        is_watching = True
        report["trapped"] = opened(kind, Path(trapped))
        is_watching = False
        sys.stdout.write(f"REPORT {json.dumps({**report, 'seen': seen})}\n")


if __name__ == "__main__":
    main()
