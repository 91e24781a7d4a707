"""What the files of a model folder may not ask for: code from elsewhere, files of other folders, other models.

transformers obeys such files. Here they are refused, in one sentence, unless the caller of `from_pretrained` asks for
the same by an argument; `SECURITY.md` says what is trusted.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

# Those that come with torch, transformers and this package; others name kernels that are fetched from the hub.
ATTENTIONS = ("eager", "sdpa", "flex_attention", "kernels")

_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
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


def check_index(content: Any) -> None:
    """See that an index of weights in several files names files of its own folder.

    Args:
        content: of `model.safetensors.index.json`, or `pytorch_model.bin.index.json`.
    Raises: ValueError if it does not.
    """
    files = content.get("weight_map") if isinstance(content, dict) else None
    outside = [file for file in (files.values() if isinstance(files, dict) else ()) if not _stays_inside(file)]
    if outside:
        raise ValueError(f"weight_map names {outside[0]!r:.80}: only files of the folder are read, put it there")


def check_adapter(fields: Any, has_model: bool) -> None:
    """See that an `adapter_config.json` leads to no other model, and asks for no code.

    Args:
        fields: of the file.
        has_model: whether a model lies beside it.
    Raises: ValueError if it does.
    """
    fields = fields if isinstance(fields, dict) else {}
    if not has_model:
        raise ValueError(
            f"it is an adapter of {fields.get('base_model_name_or_path')!r:.80} without a model beside it: load the "
            "model that you trust, and give this folder to its load_adapter"
        )
    for key in ("megatron_config", "megatron_core", "adapters"):
        # peft writes the name of its own choice of a library, which it imports only with a megatron_config.
        if fields.get(key) not in (None, "megatron.core"):
            raise ValueError(f"{key} asks for code or adapters from elsewhere: remove the key")


def check_model_files(name: str | os.PathLike[str], given: Mapping[str, Any]) -> None:
    """Check what `from_pretrained` is about to read, in a folder or on the hub.

    Args:
        name: of the folder, or on the hub.
        given: the arguments of `from_pretrained`.
    Raises: ValueError, in one sentence that names the file, if one asks for too much. Files that are missing or damaged
        are left to the loader.
    """
    config = _find(name, "config.json", given)
    _check(config, lambda fields: check_config(fields, given) if isinstance(fields, dict) else None)
    _check(_find(name, "adapter_config.json", given), lambda fields: check_adapter(fields, config is not None))
    if Path(name).is_dir():  # transformers looks for those on the hub in the same repository
        for path in sorted((Path(name) / (given.get("subfolder") or "")).glob("*.index*.json")):
            _check(path, check_index)


def _check(path: Path | None, check: Callable[[Any], None]) -> None:
    if path is None:
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    try:
        check(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _find(name: str | os.PathLike[str], file: str, given: Mapping[str, Any]) -> Path | None:
    if Path(name).is_file():
        return Path(name) if file == "config.json" else None
    if Path(name).is_dir():
        path = Path(name) / (given.get("subfolder") or "") / file
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file

    options = {key: given[key] for key in _HUB_OPTIONS if given.get(key) is not None}
    quiet = {f"_raise_exceptions_for_{error}": False for error in _NO_ERRORS}
    found = cached_file(os.fspath(name), file, **options, **quiet)
    return None if found is None else Path(found)


def _stays_inside(file: Any) -> bool:
    path = PureWindowsPath(str(file))  # which knows both kinds of slashes, and drives
    return not path.anchor and ".." not in path.parts
