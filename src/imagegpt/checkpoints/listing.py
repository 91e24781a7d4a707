"""Listing of the tensors in a checkpoint of any supported format."""

from pathlib import Path

from imagegpt.checkpoints.loading import find_folder
from imagegpt.checkpoints.tensor_bundle import read_bundle
from imagegpt.files.paths import expand_home
from imagegpt.model.weight_files import TensorInfo, read_tensor_infos


def list_tensors(source: str) -> list[TensorInfo]:
    """List the tensors of a checkpoint, sorted by name, without reading their values if the format allows it.

    Args:
        source: the prefix of a TensorFlow checkpoint, a folder with weights, or a model's name.
    Raises: ValueError or OSError, in one sentence, if it does not exist or is damaged.
    """
    prefix = Path(expand_home(source.removesuffix(".index")))
    if prefix.name and prefix.with_name(prefix.name + ".index").is_file():  # the root folder has no name
        bundle = read_bundle(prefix)
        entries = (bundle.entry(name) for name in sorted(bundle))
        return [
            TensorInfo(name=entry.name, shape=entry.shape, dtype=entry.dtype or "not numeric", nbytes=entry.nbytes)
            for entry in entries
        ]
    folder = find_folder(source)
    paths = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not paths:
        raise FileNotFoundError(f"{folder} contains no weights: expected model.safetensors or pytorch_model.bin in it")
    tensors = (tensor for path in paths for tensor in read_tensor_infos(path))
    return sorted(tensors, key=lambda tensor: tensor.name)
