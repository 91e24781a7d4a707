"""What a `config.json` may hold beside the fields of `ImageGPTConfig`, checked before anything is made of it.

transformers makes an attribute of every key, so that a key can take the place of a method, switch parts of transformers
on that ImageGPT does not have, or ask for a table of 2^31 classes. The keys of an ordinary folder pass, known or not.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from imagegpt.common import ranges
from imagegpt.common.number_fields import Within
from imagegpt.files.schemas import first_complaint, read_json, validate

DTYPES = ("float32", "float16", "bfloat16", "float64")

_MAX_BYTES = 8 * 2**20  # with the names of as many classes as there may be

# Keys that transformers obeys, and that mean nothing for ImageGPT: other code in place of a model's own, settings of
# single layers, models in the model, masks and caches of other kinds.
_NOT_OURS = (
    "fusion_config", "kernel_config", "per_layer_config", "distributed_config", "experts_implementation",
    "_experts_implementation", "text_config", "vision_config", "decoder", "encoder", "generator", "text_encoder",
    "layer_types", "mtp_layer_types", "sliding_window", "attention_chunk_size", "rope_parameters", "rope_scaling",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _OtherFields:
    """Fields that the constructor takes without looking, or complains of at length."""

    model_type: str | None = None
    architectures: list[str] | None = None
    id2label: dict[int, str] | None = None
    label2id: dict[str, int] | None = None
    num_labels: Annotated[int, Within(ranges.CLASSES)] | None = None
    pruned_heads: dict[int, list[int]] | None = None


_ADAPTER = TypeAdapter(_OtherFields)


def read_config(path: Path) -> dict[str, Any]:
    """The content of a `config.json`.

    Raises: ValueError, which names the file, if it is too large, no JSON, no object, or leads to another file.
    """
    fields = validate(read_json(path, max_bytes=_MAX_BYTES), dict[str, Any], str(path))
    if fields.get("configuration_files"):
        raise ValueError(f"{path}: configuration_files leads to other files, which are not read: remove the key")
    return fields


def check_fields(fields: Mapping[str, Any], config_class: type) -> None:
    """See that the keys beside our own are ones that a configuration may have.

    Args:
        fields: of a `config.json`, or as `to_dict` gives them.
        config_class: what will be built from them.
    Raises: ValueError, in one sentence that names the field.
    """
    for key, value in fields.items():
        if key in _NOT_OURS and value not in (None, [], {}):
            raise ValueError(f"{key} is nothing that ImageGPT has: remove the key")
        if _is_taken(key, config_class):  # null would take its place, too
            raise ValueError(f"{key} is no field, but the name of something else in a configuration: remove the key")
    for key in ("dtype", "torch_dtype"):
        value = fields.get(key)
        is_dtype = type(value).__name__ == "dtype" or (isinstance(value, str) and value in DTYPES)
        if value is not None and not is_dtype:
            raise ValueError(f"{key} is {str(value)[:40]!r}: it must be one of {', '.join(DTYPES)}")
    try:
        labels = _ADAPTER.validate_python(fields).id2label or {}
    except ValidationError as error:
        raise ValueError(first_complaint(error)) from None
    if len(labels) > ranges.CLASSES.highest or sorted(labels) != list(range(len(labels))):
        raise ValueError(
            f"id2label names {len(labels):,} classes: it must number them from 0, {ranges.CLASSES.highest:,} at most"
        )


def check_pruned_heads(pruned_heads: Mapping[Any, Sequence[int]], num_blocks: int, num_heads: int) -> None:
    """See that the heads to remove are there, and that each block keeps one.

    Args:
        pruned_heads: the indices of heads, by the index of their block.
        num_blocks: of the model.
        num_heads: of each block, before any is removed.
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
    """Whether an attribute of this name would stand before one of the class that is no field."""
    fields = {field.name for field in dataclasses.fields(config_class)}  # without the class's own, like attribute_map
    if key == "model_type" or key in fields:
        return False
    taken = getattr(config_class, key, None)
    return taken is not None and not (isinstance(taken, property) and taken.fset is not None)
