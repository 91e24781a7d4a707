"""Check the keys of a `config.json` that are not fields of `ImageGPTConfig`, before a configuration is built from them.

transformers turns every key into an attribute. A key can thus replace a method, enable features that ImageGPT does not
have, or allocate a table of 2^31 classes. Harmless keys pass, whether we know them or not.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from imagegpt.common import ranges
from imagegpt.common.pydantic_ranges import InRange
from imagegpt.files.schemas import format_validation_error, read_json, validate

DTYPES = ("float32", "float16", "bfloat16", "float64")

_MAX_BYTES = 8 * 2**20  # enough for the names of the maximum number of classes

# Keys that transformers acts on and that ImageGPT does not support: replacement code for a model, settings per layer,
# nested models, other kinds of masks and caches.
_UNSUPPORTED = (
    "fusion_config", "kernel_config", "per_layer_config", "distributed_config", "experts_implementation",
    "_experts_implementation", "text_config", "vision_config", "decoder", "encoder", "generator", "text_encoder",
    "layer_types", "mtp_layer_types", "sliding_window", "attention_chunk_size", "rope_parameters", "rope_scaling",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _OtherFields:
    """Fields that transformers does not validate, or rejects with a long error message."""

    model_type: str | None = None
    architectures: list[str] | None = None
    id2label: dict[int, str] | None = None
    label2id: dict[str, int] | None = None
    num_labels: Annotated[int, InRange(ranges.CLASSES)] | None = None
    pruned_heads: dict[int, list[int]] | None = None


_ADAPTER = TypeAdapter(_OtherFields)


def read_config(path: Path) -> dict[str, Any]:
    """Read a `config.json`.

    Raises: ValueError, naming the file, if it is too large, not a JSON object, or refers to another file.
    """
    fields = validate(read_json(path, max_bytes=_MAX_BYTES), dict[str, Any], str(path))
    if fields.get("configuration_files"):
        raise ValueError(f"{path}: configuration_files refers to other files, which are not read: remove the key")
    return fields


def check_config_fields(fields: Mapping[str, Any], config_class: type) -> None:
    """Check the keys that are not fields of the configuration class.

    Args:
        fields: of a `config.json`, or from `to_dict`.
    Raises: ValueError, naming the key, if one is unsupported or invalid.
    """
    for key, value in fields.items():
        if key in _UNSUPPORTED and value not in (None, [], {}):
            raise ValueError(f"{key} is not supported by ImageGPT: remove the key")
        if _is_taken(key, config_class):  # null would replace it, too
            raise ValueError(f"{key} is a method or attribute of a configuration, not a field: remove the key")
    for key in ("dtype", "torch_dtype"):
        value = fields.get(key)
        is_dtype = type(value).__name__ == "dtype" or (isinstance(value, str) and value in DTYPES)
        if value is not None and not is_dtype:
            raise ValueError(f"{key} is {str(value)[:40]!r}: it must be one of {', '.join(DTYPES)}")
    try:
        labels = _ADAPTER.validate_python(fields).id2label or {}
    except ValidationError as error:
        raise ValueError(format_validation_error(error)) from None
    if len(labels) > ranges.CLASSES.max or sorted(labels) != list(range(len(labels))):
        raise ValueError(
            f"id2label names {len(labels):,} classes: it must number them from 0, {ranges.CLASSES.max:,} at most"
        )


def check_pruned_heads(pruned_heads: Mapping[Any, Sequence[int]], num_blocks: int, num_heads: int) -> None:
    """Check that the pruned heads exist and that each block keeps at least one head.

    Args:
        pruned_heads: block index -> indices of its pruned heads.
        num_heads: in each block, before pruning.
    Raises: ValueError, naming the block, if not.
    """
    for block, heads in pruned_heads.items():
        if not 0 <= int(block) < num_blocks:
            raise ValueError(f"pruned_heads names block {block}: this model has blocks 0 to {num_blocks - 1}")
        wrong = [head for head in heads if not 0 <= head < num_heads]
        if wrong:
            raise ValueError(f"pruned_heads names head {wrong[0]} in block {block}: heads are 0 to {num_heads - 1}")
        if len(set(heads)) >= num_heads:
            raise ValueError(f"pruned_heads leaves no head in block {block}: keep one of {num_heads}")


def _is_taken(key: str, config_class: type) -> bool:
    """Whether the key would shadow an attribute of the class that is not a field."""
    fields = {
        field.name for field in dataclasses.fields(config_class)
    }  # excludes class attributes such as attribute_map
    if key == "model_type" or key in fields:
        return False
    taken = getattr(config_class, key, None)
    return taken is not None and not (isinstance(taken, property) and taken.fset is not None)
