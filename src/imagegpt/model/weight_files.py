"""Files of weights: which of them a folder has, and which tensors they hold, without reading the numbers.

Whoever builds a model from a folder looks here first: what is damaged is one sentence, and what a configuration asks
for can be compared with what is there.
"""

import math
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from imagegpt.files.schemas import naming, read_json
from imagegpt.files.untrusted import check_index

WEIGHT_FILES = (  # in the order in which transformers looks for them
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")

_MOST_PICKLED = 4 * 2**20  # bytes; the largest model's tensors take 0.1 MB

_SAFETENSORS_BITS = {"BOOL": 8}  # the other names have their bits behind the first letters: F32, F8_E4M3
_FLOATS = ("float16", "bfloat16", "float32", "float64", "F8_E4M3", "F8_E5M2", "float8_e4m3fn", "float8_e5m2")
# transformers 4 stored the causal mask of each block, as whole numbers.
STORED_MASKS = r"\.(attn|crossattention)\.(bias|masked_bias)$"


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


def files_of_weights(folder: Path) -> list[Path]:
    """The files from which transformers would load a model; none if it finds none.

    Raises: ValueError or FileNotFoundError if an index is damaged, or names a file that is not there.
    """
    found = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None or found.suffix != ".json":
        return [] if found is None else [found]
    with naming(str(found)):
        named = {folder / file for file in check_index(read_json(found)).weight_map.values()}
    missing = sorted(path for path in named if not path.is_file())
    if missing:
        raise FileNotFoundError(f"{found} names {missing[0].name}, which is not there: get it, too")
    return sorted(named)


def list_tensors_of(path: Path) -> list[ListedTensor]:
    """The tensors in a file of weights.

    Raises: ValueError, in one sentence, if it is damaged or holds more than weights.
    """
    return _of_safetensors(path) if path.suffix == ".safetensors" else _of_pickle(path)


def check_weights(paths: list[Path]) -> None:
    """See that files of weights can be read, and hold numbers that a model may have.

    Raises: ValueError, in one sentence, if not.
    """
    for path in paths:
        for one in list_tensors_of(path):
            if one.dtype not in _FLOATS and not re.search(STORED_MASKS, one.name):
                raise ValueError(
                    f"{path}: {one.name:.80} is of type {one.dtype}, and weights are floating-point numbers: get the "
                    "file again"
                )


def _of_safetensors(path: Path) -> list[ListedTensor]:
    listed = []
    try:
        with safe_open(path, framework="pt") as file:  # which compares all sizes with the file's
            if (file.metadata() or {}).get("format", "pt") not in ("pt", "np"):
                raise ValueError(f"{path} holds weights for {file.metadata()['format']!r:.40}, not for PyTorch")
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                part = file.get_slice(name)
                shape, kind = tuple(part.get_shape()), part.get_dtype()
                nbytes = math.prod(shape) * _bits(kind) // 8
                listed.append(ListedTensor(name=name, shape=shape, dtype=_spelled(kind), nbytes=nbytes))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or cut short ({_shortened(error)}): get the file again") from None
    return listed


def _bits(kind: str) -> int:
    return _SAFETENSORS_BITS.get(kind) or int(re.sub(r"^[A-Z]+(\d+).*$", r"\1", kind))


def _spelled(kind: str) -> str:
    letters = kind.rstrip("0123456789")
    names = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint", "BOOL": "bool"}
    return names.get(letters, kind) + kind[len(letters) :] if letters in names else kind


def _of_pickle(path: Path) -> list[ListedTensor]:
    """Of a file of `torch.save`, mapped into memory where it is of today's format, so that no number is read."""
    try:
        _check_pickle(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - torch and pickle raise whatever the damage leads to
        raise ValueError(
            f"{path} is damaged, or holds more than weights ({_shortened(error)}): get the file again"
        ) from None
    tensors = list(content.items() if isinstance(content, dict) else [(type(content).__name__, content)])
    for name, tensor in tensors:
        is_plain = isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not (isinstance(name, str) and is_plain):
            raise ValueError(f"{path} holds more than weights ({name!r:.80}): get the file again")
    return [
        ListedTensor(
            name=name,
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
            nbytes=tensor.numel() * tensor.element_size(),
        )
        for name, tensor in tensors
    ]


def _check_pickle(path: Path) -> None:
    """See that the list of tensors, which is all that is unpickled, has a plausible length.

    Raises: ValueError if not: torch searches its own error, which may repeat all of it, with a slow expression.
    """
    if not _is_zip(path):
        return
    with zipfile.ZipFile(path) as archive:
        largest = max((one.file_size for one in archive.infolist() if one.filename.endswith(".pkl")), default=0)
    if largest > _MOST_PICKLED:
        raise ValueError(f"its list of tensors has {largest:,} bytes")


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _shortened(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
