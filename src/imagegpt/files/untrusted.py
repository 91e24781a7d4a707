"""Refuse model files that would make transformers run foreign code or read files outside their folder.

transformers follows what such files say. We raise ValueError instead, unless the caller of `from_pretrained` passed the
corresponding argument; `SECURITY.md` says what is trusted.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any

from imagegpt.common import ranges
from imagegpt.common.pydantic_ranges import InRange
from imagegpt.common.text import truncate
from imagegpt.files.schemas import MAX_JSON_BYTES, prefix_errors, read_json, validate

# Implementations in torch, transformers and this package; any other name makes transformers download a kernel.
ATTENTIONS = ("eager", "sdpa", "flex_attention", "kernels")

_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_SMALL_BYTES = 2**20  # for files with a few options, which transformers copies and prints several times
_NO_ERRORS = ("gated_repo", "missing_entries", "connection_errors")


def check_attention(fields: Mapping[str, Any], kwargs: Mapping[str, Any] | None = None) -> None:
    """Check that a `config.json` does not select an attention implementation that would be downloaded.

    Args:
        kwargs: of `from_pretrained`, which may select any.
    Raises: ValueError if it does.
    """
    for key in ("attn_implementation", "_attn_implementation"):
        chosen = fields.get(key)
        if kwargs and key in kwargs:
            continue
        for name in chosen.values() if isinstance(chosen, dict) else [chosen]:
            if name is not None and name not in ATTENTIONS:
                raise ValueError(
                    f"{key} is {name!r:.80}, and a file may only choose {', '.join(ATTENTIONS)}: remove the key, or "
                    "pass attn_implementation to from_pretrained if you trust that code"
                )


def check_config(fields: Mapping[str, Any], kwargs: Mapping[str, Any] | None = None) -> None:
    """Check that a `config.json` refers to no foreign code and to no file outside its folder.

    Args:
        kwargs: of `from_pretrained`, which may allow foreign code.
    Raises: ValueError, naming the key, if it does.
    """
    kwargs = kwargs or {}
    check_attention(fields, kwargs)
    arguments = {
        "quantization_config": "quantization_config",
        "auto_map": "trust_remote_code",
        "trust_remote_code": "trust_remote_code",
    }
    for key, argument in arguments.items():
        if fields.get(key) and not kwargs.get(argument):
            raise ValueError(
                f"{key} refers to code outside this package: remove the key, or pass {argument} to "
                "from_pretrained if you trust that code"
            )
    weights = fields.get("transformers_weights")
    if weights is not None and not _stays_inside(weights):
        raise ValueError(
            f"transformers_weights is {weights!r:.80}: only files in the same folder are read, remove the key"
        )


@dataclass(frozen=True, kw_only=True)
class WeightIndex:
    """The index of sharded weights; transformers requires `metadata`."""

    weight_map: dict[str, str]
    metadata: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _AdapterConfig:
    """The fields of an `adapter_config.json` that we and transformers read; peft reads the others."""

    peft_type: str | None = None
    base_model_name_or_path: str | None = None
    r: Annotated[int, InRange(ranges.LORA_RANK)] | None = None
    rank_pattern: dict[str, Annotated[int, InRange(ranges.LORA_RANK)]] | None = None


def check_index(content: Any) -> WeightIndex:
    """Check that an index of sharded weights refers only to files in its own folder.

    Args:
        content: of `model.safetensors.index.json` or `pytorch_model.bin.index.json`.
    Raises: ValueError if it does not.
    """
    index = validate(content, WeightIndex, "")
    outside = [file for file in index.weight_map.values() if not _stays_inside(file)]
    if outside:
        raise ValueError(f"weight_map names {outside[0]!r:.80}: only files in the same folder are read, put it there")
    if not index.weight_map:
        raise ValueError("weight_map names no file: download the index again")
    return index


def check_adapter(fields: dict[str, Any], has_model: bool) -> None:
    """Check that an `adapter_config.json` refers to no other model and to no foreign code.

    Raises: ValueError if it does.
    """
    found = validate(fields, _AdapterConfig, "")
    if not has_model:
        base = truncate(str(found.base_model_name_or_path), 80)
        raise ValueError(
            f"it is an adapter of {base!r}, and its folder contains no model: load a model that you trust, and pass "
            "this folder to its load_adapter"
        )
    for key in ("megatron_config", "megatron_core", "adapters"):
        # peft always writes "megatron.core" here, and imports it only if there is a megatron_config.
        if fields.get(key) not in (None, "megatron.core"):
            raise ValueError(f"{key} refers to code or adapters outside this folder: remove the key")


def check_generation(fields: dict[str, Any]) -> None:
    """Check that transformers' `GenerationConfig` accepts the fields of a `generation_config.json`.

    Raises: ValueError if it does not.
    """
    from transformers import GenerationConfig

    taken = [key for key in fields if callable(getattr(GenerationConfig, key, None))]
    if taken:
        raise ValueError(f"{taken[0]} is a method of GenerationConfig, not a sampling option: remove the key")
    try:
        GenerationConfig.from_dict(dict(fields)).to_json_string()
    except Exception as error:  # noqa: BLE001 - transformers raises many types
        raise ValueError(
            f"transformers rejects it ({first_line(error)}): download the file again, or remove it"
        ) from None


def first_line(error: Exception) -> str:
    """Return type and first line of another library's error."""
    lines = f"{type(error).__name__}: {error}".strip().splitlines()
    return lines[0][:200].rstrip(".: ")


def check_model_files(name: str | os.PathLike[str], kwargs: Mapping[str, Any]) -> None:
    """Check the JSON files that `from_pretrained` is about to read.

    Args:
        name: a folder, or a name on the hub.
    Raises: ValueError, naming the file, if one is damaged or refused. Missing files are left to the loader.
    """
    config = _find(name, "config.json", kwargs)
    _check(config, lambda fields: check_config(fields, kwargs))
    _check(_find(name, "adapter_config.json", kwargs), lambda fields: check_adapter(fields, config is not None))
    _check(_find(name, "generation_config.json", kwargs), check_generation, max_bytes=_SMALL_BYTES)
    if Path(name).is_dir():  # on the hub, transformers reads only files of the same repository
        for path in sorted((Path(name) / (kwargs.get("subfolder") or "")).glob("*.index*.json")):
            _check(path, check_index)


def check_processor_files(name: str | os.PathLike[str], kwargs: Mapping[str, Any]) -> None:
    """Check the JSON files that an image processor is about to be loaded from.

    Args:
        name: a file, a folder, or a name on the hub.
    Raises: ValueError, naming the file, if one is damaged.
    """
    paths = [Path(name)] if Path(name).is_file() else [_find(name, file, kwargs) for file in _PROCESSOR_FILES]
    for path in paths:
        _check(path, lambda fields: validate(fields.get("image_processor", {}), dict[str, Any], "image_processor"))


def _check(path: Path | None, check: Callable[[dict[str, Any]], Any], *, max_bytes: int = MAX_JSON_BYTES) -> None:
    if path is None:
        return
    with prefix_errors(str(path)):
        check(validate(read_json(path, max_bytes=max_bytes), dict[str, Any], ""))


def _find(name: str | os.PathLike[str], file: str, kwargs: Mapping[str, Any]) -> Path | None:
    if Path(name).is_file():
        return Path(name) if file == "config.json" else None
    if Path(name).is_dir():
        path = Path(name) / (kwargs.get("subfolder") or "") / file
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file

    options = {key: kwargs[key] for key in _HUB_OPTIONS if kwargs.get(key) is not None}
    quiet = {f"_raise_exceptions_for_{error}": False for error in _NO_ERRORS}
    try:
        found = cached_file(os.fspath(name), file, **options, **quiet)
    except RuntimeError as error:  # raised by pathlib for a user without a home folder
        raise ValueError(f"{os.fspath(name)} cannot be downloaded ({error}): pass cache_dir, or set HF_HOME") from None
    return None if found is None else Path(found)


def _stays_inside(file: Any) -> bool:
    path = PureWindowsPath(str(file))  # splits at both kinds of slashes, and recognises drives
    return not path.anchor and ".." not in path.parts
