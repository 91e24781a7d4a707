"""What is in a checkpoint, of any kind that can be read here."""

from pathlib import Path

from imagegpt.checkpoints.loading import find_folder
from imagegpt.checkpoints.tensor_bundle import read_bundle
from imagegpt.files.paths import expand_home
from imagegpt.model.weight_files import ListedTensor, list_tensors_of


def list_tensors(source: str) -> list[ListedTensor]:
    """The tensors of a checkpoint, by name, without reading their numbers where that can be avoided.

    Args:
        source: the prefix of a TensorFlow checkpoint, a folder with weights, or a model's name.
    Raises: ValueError or OSError, in one sentence, if there is none, or it is damaged.
    """
    prefix = Path(expand_home(source.removesuffix(".index")))
    if prefix.name and prefix.with_name(prefix.name + ".index").is_file():  # the root has no name
        bundle = read_bundle(prefix)
        entries = (bundle.entry(name) for name in sorted(bundle))
        return [
            ListedTensor(name=one.name, shape=one.shape, dtype=one.dtype or "no number", nbytes=one.nbytes)
            for one in entries
        ]
    folder = find_folder(source)
    paths = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no weights: expected model.safetensors or pytorch_model.bin in it")
    return sorted((one for path in paths for one in list_tensors_of(path)), key=lambda one: one.name)
