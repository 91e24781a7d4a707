"""The images in `naive_ids.npz`, sampled from the bundled models by the naive loop of `write_naive_ids.py`.

Axes: B images, T pixels in raster order.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from imagegpt.checkpoints.loading import find_folder, load_model
from imagegpt.sampling import SamplingRules

PATH = Path(__file__).with_name("naive_ids.npz")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NaiveIds:
    """Images of one bundled model.

    Args:
        ids: (B, T) colours, int64.
        seeds: one per image.
        rules: one per image.
        smallest_margin: the smallest margin of all pixels, see `write_naive_ids.margin_of`.
        weights_sha256: of the model's weights, see `hash_weights`.
    """

    ids: torch.Tensor
    seeds: list[int]
    rules: list[SamplingRules]
    smallest_margin: float
    weights_sha256: str


def load_bundled(name):
    """The bundled model as `save_pretrained` wrote it, not prepared for sampling."""
    return load_model(find_folder(name)).eval()


def hash_weights(model):
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.contiguous().numpy().tobytes())
    return digest.hexdigest()


def write(images, path=PATH):
    """Store the `NaiveIds` of each model, by its name, in the smallest type that holds the colours."""
    arrays = {}
    for name, of_model in images.items():
        ids = of_model.ids.numpy()
        arrays[f"{name}_ids"] = ids.astype(np.min_scalar_type(ids.max()))
        arrays[f"{name}_seeds"] = np.array(of_model.seeds, dtype=np.uint64)
        arrays[f"{name}_rules"] = np.array([json.dumps(dataclasses.asdict(rules)) for rules in of_model.rules])
        arrays[f"{name}_smallest_margin"] = np.array(of_model.smallest_margin)
        arrays[f"{name}_weights_sha256"] = np.array(of_model.weights_sha256)
    np.savez_compressed(path, **arrays)


def read(name, path=PATH):
    with np.load(path) as arrays:
        return NaiveIds(
            ids=torch.from_numpy(arrays[f"{name}_ids"].astype(np.int64)),
            seeds=arrays[f"{name}_seeds"].tolist(),
            rules=[SamplingRules(**json.loads(text)) for text in arrays[f"{name}_rules"].tolist()],
            smallest_margin=float(arrays[f"{name}_smallest_margin"]),
            weights_sha256=str(arrays[f"{name}_weights_sha256"]),
        )
