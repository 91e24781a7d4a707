"""What the files of a model folder may not ask for: code from elsewhere, files of other folders, other models.

transformers obeys such files. Here they are refused, in one sentence, unless the caller of `from_pretrained` asks for
the same by an argument; `SECURITY.md` says what is trusted.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any

from imagegpt.common import ranges
from imagegpt.common.number_fields import Within
from imagegpt.common.text import shortened
from imagegpt.files.schemas import MAX_JSON_BYTES, naming, read_json, validate

# Those that come with torch, transformers and this package; others name kernels that are fetched from the hub.
ATTENTIONS = ("eager", "sdpa", "flex_attention", "kernels")

_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_SMALL_BYTES = 2**20  # of a file with a few options, which transformers copies and prints more than once
_NO_ERRORS = ("gated_repo", "missing_entries", "connection_errors")


def check_attention(fields: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> None:
    """See that a `config.json` does not choose an attention that has to be fetched.

    Args:
        fields: of the file.
        given: the caller's arguments, which may choose any.
    Raises: ValueError if it does.
    """
    for key in ("attn_implementation", "_attn_implementation"):
        chosen = fields.get(key)
        if given and key in given:
            continue
        for name in chosen.values() if isinstance(chosen, dict) else [chosen]:
            if name is not None and name not in ATTENTIONS:
                raise ValueError(
                    f"{key} is {name!r:.80}, and a file may choose {', '.join(ATTENTIONS)} only: remove the key, or "
                    "give attn_implementation to from_pretrained if you trust that code"
                )


def check_config(fields: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> None:
    """See that a `config.json` asks for no code and no file of another folder.

    Args:
        fields: of the file.
        given: the caller's arguments.
    Raises: ValueError, naming the key, if it does.
    """
    given = given or {}
    check_attention(fields, given)
    arguments = {
        "quantization_config": "quantization_config",
        "auto_map": "trust_remote_code",
        "trust_remote_code": "trust_remote_code",
    }
    for key, argument in arguments.items():
        if fields.get(key) and not given.get(argument):
            raise ValueError(
                f"{key} asks for code that is not this package's: remove the key, or give {argument} to "
                "from_pretrained if you trust that code"
            )
    weights = fields.get("transformers_weights")
    if weights is not None and not _stays_inside(weights):
        raise ValueError(f"transformers_weights is {weights!r:.80}: only files of the folder are read, remove the key")


@dataclass(frozen=True, kw_only=True)
class WeightIndex:
    """An index of weights in several files; `metadata` is what transformers wants to find there."""

    weight_map: dict[str, str]
    metadata: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _AdapterConfig:
    """What an `adapter_config.json` says, as far as others than the library peft look at it."""

    peft_type: str | None = None
    base_model_name_or_path: str | None = None
    r: Annotated[int, Within(ranges.LORA_RANK)] | None = None
    rank_pattern: dict[str, Annotated[int, Within(ranges.LORA_RANK)]] | None = None


def check_index(content: Any) -> WeightIndex:
    """See that an index of weights in several files names files of its own folder.

    Args:
        content: of `model.safetensors.index.json`, or `pytorch_model.bin.index.json`.
    Raises: ValueError if it does not.
    """
    index = validate(content, WeightIndex, "")
    outside = [file for file in index.weight_map.values() if not _stays_inside(file)]
    if outside:
        raise ValueError(f"weight_map names {outside[0]!r:.80}: only files of the folder are read, put it there")
    if not index.weight_map:
        raise ValueError("weight_map names no file: get the index again")
    return index


def check_adapter(fields: dict[str, Any], has_model: bool) -> None:
    """See that an `adapter_config.json` leads to no other model, and asks for no code.

    Args:
        fields: of the file.
        has_model: whether a model lies beside it.
    Raises: ValueError if it does.
    """
    found = validate(fields, _AdapterConfig, "")
    if not has_model:
        base = shortened(str(found.base_model_name_or_path), 80)
        raise ValueError(
            f"it is an adapter of {base!r} without a model beside it: load the model that you trust, and give this "
            "folder to its load_adapter"
        )
    for key in ("megatron_config", "megatron_core", "adapters"):
        # peft writes the name of its own choice of a library, which it imports only with a megatron_config.
        if fields.get(key) not in (None, "megatron.core"):
            raise ValueError(f"{key} asks for code or adapters from elsewhere: remove the key")


def check_generation(fields: dict[str, Any]) -> None:
    """See that transformers' `GenerationConfig` takes the fields of a `generation_config.json`.

    Raises: ValueError, in one sentence, if it does not.
    """
    from transformers import GenerationConfig

    taken = [key for key in fields if callable(getattr(GenerationConfig, key, None))]
    if taken:
        raise ValueError(f"{taken[0]} is no option of sampling, but the name of a function: remove the key")
    try:
        GenerationConfig.from_dict(dict(fields)).to_json_string()
    except Exception as error:  # noqa: BLE001 - whatever nonsense leads transformers to
        raise ValueError(
            f"transformers does not take it ({first_line(error)}): get the file again, or remove it"
        ) from None


def first_line(error: Exception) -> str:
    """What another library's error says, in one line."""
    lines = f"{type(error).__name__}: {error}".strip().splitlines()
    return lines[0][:200].rstrip(".: ")


def check_model_files(name: str | os.PathLike[str], given: Mapping[str, Any]) -> None:
    """Check what `from_pretrained` is about to read, in a folder or on the hub.

    Args:
        name: of the folder, or on the hub.
        given: the arguments of `from_pretrained`.
    Raises: ValueError, in one sentence that names the file, if one is damaged or asks for too much. Files that are
        missing are left to the loader.
    """
    config = _find(name, "config.json", given)
    _check(config, lambda fields: check_config(fields, given))
    _check(_find(name, "adapter_config.json", given), lambda fields: check_adapter(fields, config is not None))
    _check(_find(name, "generation_config.json", given), check_generation, max_bytes=_SMALL_BYTES)
    if Path(name).is_dir():  # transformers looks for those on the hub in the same repository
        for path in sorted((Path(name) / (given.get("subfolder") or "")).glob("*.index*.json")):
            _check(path, check_index)


def check_processor_files(name: str | os.PathLike[str], given: Mapping[str, Any]) -> None:
    """Check the JSON that an image processor is about to be read from.

    Args:
        name: of the file or folder, or on the hub.
        given: the arguments of `from_pretrained`.
    Raises: ValueError, in one sentence that names the file, if it is damaged.
    """
    paths = [Path(name)] if Path(name).is_file() else [_find(name, file, given) for file in _PROCESSOR_FILES]
    for path in paths:
        _check(path, lambda fields: validate(fields.get("image_processor", {}), dict[str, Any], "image_processor"))


def _check(path: Path | None, check: Callable[[dict[str, Any]], Any], *, max_bytes: int = MAX_JSON_BYTES) -> None:
    if path is None:
        return
    with naming(str(path)):
        check(validate(read_json(path, max_bytes=max_bytes), dict[str, Any], ""))


def _find(name: str | os.PathLike[str], file: str, given: Mapping[str, Any]) -> Path | None:
    if Path(name).is_file():
        return Path(name) if file == "config.json" else None
    if Path(name).is_dir():
        path = Path(name) / (given.get("subfolder") or "") / file
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file

    options = {key: given[key] for key in _HUB_OPTIONS if given.get(key) is not None}
    quiet = {f"_raise_exceptions_for_{error}": False for error in _NO_ERRORS}
    try:
        found = cached_file(os.fspath(name), file, **options, **quiet)
    except RuntimeError as error:  # of pathlib, for a user without a home
        raise ValueError(f"{os.fspath(name)} cannot be looked for ({error}): give cache_dir, or set HF_HOME") from None
    return None if found is None else Path(found)


def _stays_inside(file: Any) -> bool:
    path = PureWindowsPath(str(file))  # which knows both kinds of slashes, and drives
    return not path.anchor and ".." not in path.parts
