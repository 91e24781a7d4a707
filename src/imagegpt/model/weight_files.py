"""Weight files of a model folder: finding them, listing their tensors without reading the values, validating them.

Loaders call this before they build a model: damaged files become one-sentence errors, and the size in the configuration
can be compared with the size of the files.
"""

import math
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from imagegpt.files.schemas import prefix_errors, read_json
from imagegpt.files.untrusted import check_index

WEIGHT_FILES = (  # in the order in which transformers looks for them
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")

_MAX_PICKLE_BYTES = 4 * 2**20  # the tensor list of the largest model takes 0.1 MB

_SAFETENSORS_BITS = {"BOOL": 8}  # all other names contain their number of bits: F32, F8_E4M3
_FLOAT_DTYPES = ("float16", "bfloat16", "float32", "float64", "F8_E4M3", "F8_E5M2", "float8_e4m3fn", "float8_e5m2")
# transformers 4 stored the causal mask of each block, as integers.
STORED_MASKS = r"\.(attn|crossattention)\.(bias|masked_bias)$"


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """Metadata of a tensor in a checkpoint.

    Attributes:
        shape: () for a scalar.
        dtype: its name in numpy or torch; "not numeric" for strings and the like.
        nbytes: size of its values.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


def find_weight_files(folder: Path) -> list[Path]:
    """Return the files from which transformers would load a model, possibly none.

    Raises: ValueError if an index is damaged; FileNotFoundError if it names a missing file.
    """
    found = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None or found.suffix != ".json":
        return [] if found is None else [found]
    with prefix_errors(str(found)):
        named = {folder / file for file in check_index(read_json(found)).weight_map.values()}
    missing = sorted(path for path in named if not path.is_file())
    if missing:
        raise FileNotFoundError(f"{found} names {missing[0].name}, which is missing: get it too")
    return sorted(named)


def read_tensor_infos(path: Path) -> list[TensorInfo]:
    """Read the metadata of all tensors in a weight file.

    Raises: ValueError, in one sentence, if it is damaged or contains anything but weights.
    """
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def check_weights(paths: list[Path]) -> None:
    """Check that weight files are readable and contain floating-point tensors.

    Raises: ValueError, in one sentence, if not.
    """
    for path in paths:
        for tensor in read_tensor_infos(path):
            if tensor.dtype not in _FLOAT_DTYPES and not re.search(STORED_MASKS, tensor.name):
                raise ValueError(
                    f"{path}: {tensor.name:.80} is of type {tensor.dtype}, but weights must be floating-point numbers: "
                    "get the file again"
                )


def _read_safetensors(path: Path) -> list[TensorInfo]:
    infos = []
    try:
        with safe_open(path, framework="pt") as file:  # also compares all sizes with the file's
            if (file.metadata() or {}).get("format", "pt") not in ("pt", "np"):
                raise ValueError(f"{path} contains weights for {file.metadata()['format']!r:.40}, not for PyTorch")
            for name in file.keys():  # noqa: SIM118 - `file` is not a mapping
                view = file.get_slice(name)
                shape, dtype = tuple(view.get_shape()), view.get_dtype()
                nbytes = math.prod(shape) * _num_bits(dtype) // 8
                infos.append(TensorInfo(name=name, shape=shape, dtype=_torch_dtype_name(dtype), nbytes=nbytes))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or cut short ({_one_line(error)}): get the file again") from None
    return infos


def _num_bits(safetensors_dtype: str) -> int:
    return _SAFETENSORS_BITS.get(safetensors_dtype) or int(re.sub(r"^[A-Z]+(\d+).*$", r"\1", safetensors_dtype))


def _torch_dtype_name(safetensors_dtype: str) -> str:
    letters = safetensors_dtype.rstrip("0123456789")
    names = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint", "BOOL": "bool"}
    return names[letters] + safetensors_dtype[len(letters) :] if letters in names else safetensors_dtype


def _read_pickle(path: Path) -> list[TensorInfo]:
    """Read a `torch.save` file, memory-mapped if it has the current zip format, so that no values are read."""
    try:
        _check_pickle(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - torch and pickle raise anything on damaged files
        raise ValueError(
            f"{path} is damaged, or contains more than weights ({_one_line(error)}): get the file again"
        ) from None
    tensors = list(content.items() if isinstance(content, dict) else [(type(content).__name__, content)])
    for name, tensor in tensors:
        is_weight = isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not (isinstance(name, str) and is_weight):
            raise ValueError(f"{path} contains more than weights ({name!r:.80}): get the file again")
    return [
        TensorInfo(
            name=name,
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
            nbytes=tensor.numel() * tensor.element_size(),
        )
        for name, tensor in tensors
    ]


def _check_pickle(path: Path) -> None:
    """Check that the pickled list of tensors, the only part that is unpickled, is not absurdly long.

    Raises: ValueError if it is: torch's error may quote all of it, and torch then searches that text with a slow regex.
    """
    if not _is_zip(path):
        return
    with zipfile.ZipFile(path) as archive:
        largest = max((info.file_size for info in archive.infolist() if info.filename.endswith(".pkl")), default=0)
    if largest > _MAX_PICKLE_BYTES:
        raise ValueError(f"its list of tensors has {largest:,} bytes")


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
