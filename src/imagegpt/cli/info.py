"""`imagegpt info`: show what a model is and what it costs."""

from typing import TYPE_CHECKING, Annotated, Any

from imagegpt.cli import _checks, _console, _loading, _options
from imagegpt.common.memory import format_bytes, format_si

if TYPE_CHECKING:
    from imagegpt.config import ImageGPTConfig
    from imagegpt.images.processor import ImageGPTImageProcessor

_BYTES_PER_NUMBER = {"float32": 4, "bfloat16": 2}


def info(
    model: Annotated[str, _options.name_argument("A bundled model, a folder, or owner/model on the hub.")],
    revision: _options.RevisionOption = None,
    as_json: _options.JsonOption = False,
) -> None:
    """Show what a model is and what it costs: size, parameters, memory, operations, palette."""
    _checks.check_model(model, revision)
    with _console.spinner(f"reading {model}"):
        from imagegpt.checkpoints.loading import find_folder, load_config, load_processor

        _loading.quiet_libraries()
        folder = find_folder(model, revision=revision, weights=False)
        config = load_config(folder)
        processor = load_processor(folder, config)
    facts = {"model": model, "folder": str(folder), **_model_facts(config), **_image_facts(processor)}
    if as_json:
        _console.print_json(facts)
    else:
        _console.print_key_values(_describe(facts))


def _model_facts(config: "ImageGPTConfig") -> dict[str, Any]:
    from imagegpt.model import cost

    facts = {
        "head": config.head,
        "is_causal": config.is_causal,
        "blocks": config.n_layer,
        "width": config.n_embd,
        "heads": config.n_head,
        "parameters": cost.num_parameters(config),
        "weight_bytes": {name: cost.weight_bytes(config, size) for name, size in _BYTES_PER_NUMBER.items()},
        "forward_flops": cost.forward_flops(config),
    }
    if config.head == "classes":
        names = [str(name) for name in (config.id2label or {}).values()]
        return {**facts, "classes": names, "shift_inputs": config.shift_inputs}
    if config.is_causal:
        per_pixel = {name: cost.cache_bytes_per_pixel(config, size) for name, size in _BYTES_PER_NUMBER.items()}
        facts["cache_bytes_per_image"] = {name: config.n_positions * size for name, size in per_pixel.items()}
        facts["flops_per_image"] = cost.image_flops(config)
    return facts


def _image_facts(processor: "ImageGPTImageProcessor") -> dict[str, Any]:
    palette = processor.palette
    assert palette is not None
    return {
        "image_width": processor.size["width"],
        "image_height": processor.size["height"],
        "resize_mode": processor.resize_mode,
        "colors": palette.num_colors,
        "is_grey": palette.is_grey,
        "palette_fingerprint": palette.fingerprint,
    }


def _describe(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Format the facts for people: a list of names and values."""
    lines = [
        ("model", facts["model"]),
        ("folder", facts["folder"]),
        ("kind", _kind(facts)),
        ("blocks, width, heads", f"{facts['blocks']}, {facts['width']}, {facts['heads']}"),
        ("parameters", f"{facts['parameters']:,}"),
        ("weights", _sizes(facts["weight_bytes"])),
    ]
    operations = f"{format_si(facts['forward_flops'], 'FLOP')} per forward pass"
    if "classes" in facts:
        lines += [("classes", ", ".join(facts["classes"])), ("input", _classifier_input(facts))]
    if "flops_per_image" in facts:
        lines.append(("keys and values", f"{_sizes(facts['cache_bytes_per_image'])}, per image"))
        operations += f", {format_si(facts['flops_per_image'], 'FLOP')} per sampled image"
    size = f"{facts['image_width']} x {facts['image_height']} pixels, resized by {facts['resize_mode']}"
    colors = f"{facts['colors']} {'grey levels' if facts['is_grey'] else 'colours'}"
    return [
        *lines,
        ("operations", operations),
        ("image", size),
        ("palette", f"{colors}, {facts['palette_fingerprint']}"),
    ]


def _sizes(bytes_by_dtype: dict[str, int]) -> str:
    return ", ".join(f"{format_bytes(size)} in {name}" for name, size in bytes_by_dtype.items())


def _kind(facts: dict[str, Any]) -> str:
    attention = "autoregressive" if facts["is_causal"] else "bidirectional (BERT)"
    if facts["head"] == "classes":
        return f"classifier of {len(facts['classes'])} classes, {attention}"
    return attention + (", without a head" if facts["head"] == "none" else "")


def _classifier_input(facts: dict[str, Any]) -> str:
    if facts["shift_inputs"]:
        return "the start token, then all pixels but the last"
    return "all pixels, as in transformers' classifier" if facts["is_causal"] else "all pixels"
