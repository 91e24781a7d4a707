"""What is in a checkpoint, of any kind that can be read here."""

import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from imagegpt.checkpoints.loading import find_folder
from imagegpt.checkpoints.tensor_bundle import read_bundle
from imagegpt.files import expand_home

_SAFETENSORS_BITS = {"BOOL": 8}  # the other names end in their bits


@dataclass(frozen=True, kw_only=True)
class ListedTensor:
    """A tensor of a checkpoint.

    Attributes:
        name: in the checkpoint.
        shape: of it.
        dtype: as numpy or torch call it; "text" and such for what is no number.
        nbytes: of its numbers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


def list_tensors(source: str) -> list[ListedTensor]:
    """The tensors of a checkpoint, by name, without reading their numbers where that can be avoided.

    Args:
        source: the prefix of a TensorFlow checkpoint, a folder with weights, or a model's name.
    Raises: ValueError or OSError, in one sentence, if there is none, or it is damaged.
    """
    prefix = Path(expand_home(source.removesuffix(".index")))
    if prefix.with_name(prefix.name + ".index").is_file():
        bundle = read_bundle(prefix)
        entries = (bundle.entry(name) for name in sorted(bundle))
        return [
            ListedTensor(name=one.name, shape=one.shape, dtype=one.dtype or "no number", nbytes=one.nbytes)
            for one in entries
        ]
    folder = find_folder(source)
    safe = sorted(folder.glob("*.safetensors"))
    if safe:
        return sorted((one for path in safe for one in _of_safetensors(path)), key=lambda one: one.name)
    pickled = sorted(folder.glob("pytorch_model*.bin"))
    if not pickled:
        raise FileNotFoundError(f"{folder} holds no weights: expected model.safetensors or pytorch_model.bin in it")
    return sorted((one for path in pickled for one in _of_pickle(path)), key=lambda one: one.name)


def _of_safetensors(path: Path) -> list[ListedTensor]:
    listed = []
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                part = file.get_slice(name)
                shape, kind = tuple(part.get_shape()), part.get_dtype()
                bits = _SAFETENSORS_BITS.get(kind) or int("".join(filter(str.isdigit, kind)))
                nbytes = math.prod(shape) * bits // 8
                listed.append(ListedTensor(name=name, shape=shape, dtype=_spelled(kind), nbytes=nbytes))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or cut short ({error}): get the file again") from error
    return listed


def _spelled(kind: str) -> str:
    letters = kind.rstrip("0123456789")
    names = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint", "BOOL": "bool"}
    return names.get(letters, kind) + kind[len(letters) :] if letters in names else kind


def _of_pickle(path: Path) -> list[ListedTensor]:
    import pickle

    import torch

    try:
        content = torch.load(path, map_location="meta", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is damaged, or holds more than weights ({reason}): get the file again") from error
    return [
        ListedTensor(
            name=name,
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
            nbytes=tensor.numel() * tensor.element_size(),
        )
        for name, tensor in content.items()
    ]
