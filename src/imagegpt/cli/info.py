"""`imagegpt info`: what a model is and what it costs."""

from typing import TYPE_CHECKING, Annotated

from imagegpt.cli import _checks, _console, _loading, _options
from imagegpt.common.memory import readable_bytes, with_unit

if TYPE_CHECKING:
    from imagegpt.config import ImageGPTConfig
    from imagegpt.images.processor import ImageGPTImageProcessor


def info(
    model: Annotated[str, _options.name_argument("A bundled model, a folder, or owner/model on the hub.")],
    revision: _options.RevisionOption = None,
) -> None:
    """Tell what a model is and what it costs: sizes, parameters, memory, operations, palette."""
    _checks.check_model(model, revision)
    with _console.working(f"reading {model}"):
        from imagegpt.checkpoints.loading import find_folder, load_config, load_processor

        _loading.quiet_libraries()
        folder = find_folder(model, revision=revision, weights=False)
        config = load_config(folder)
        processor = load_processor(folder, config)
    where = [("model", model), ("folder", str(folder))]
    _console.print_facts([*where, *_facts(config), *_palette_facts(processor)])


def _facts(config: "ImageGPTConfig") -> list[tuple[str, str]]:
    from imagegpt.model import cost

    sizes = (("float32", 4), ("bfloat16", 2))
    weights = [f"{readable_bytes(cost.weight_bytes(config, size))} in {name}" for name, size in sizes]
    facts = [
        ("kind", _kind(config)),
        ("blocks, width, heads", f"{config.n_layer}, {config.n_embd}, {config.n_head}"),
        ("parameters", f"{cost.num_parameters(config):,}"),
        ("weights", ", ".join(weights)),
    ]
    operations = f"{with_unit(cost.forward_flops(config), 'FLOP')} a forward pass"
    if config.head == "classes":
        names = ", ".join(map(str, (config.id2label or {}).values()))
        return [*facts, ("classes", names), ("input", _input(config)), ("operations", operations)]
    if config.is_causal:
        cache = [
            f"{readable_bytes(config.n_positions * cost.cache_bytes_per_pixel(config, size))} in {name}"
            for name, size in sizes
        ]
        facts.append(("keys and values", f"{', '.join(cache)}, for one image"))
        operations += f", {with_unit(cost.image_flops(config), 'FLOP')} an image"
    return [*facts, ("operations", operations)]


def _kind(config: "ImageGPTConfig") -> str:
    attention = "autoregressive" if config.is_causal else "bidirectional (BERT)"
    if config.head == "classes":
        return f"classifier of {config.num_labels} classes, {attention}"
    return attention + (", without a head" if config.head == "none" else "")


def _input(config: "ImageGPTConfig") -> str:
    """How pixels enter a classifier."""
    if config.shift_inputs:
        return "the start token, then all pixels but the last"
    return "all pixels, as transformers feeds them" if config.is_causal else "all pixels"


def _palette_facts(processor: "ImageGPTImageProcessor") -> list[tuple[str, str]]:
    palette = processor.palette
    assert palette is not None
    return [
        ("image", f"{processor.size['width']} x {processor.size['height']} pixels, resized by {processor.resize_mode}"),
        ("palette", f"{palette.num_colors} {'grey levels' if palette.is_grey else 'colours'}, {palette.fingerprint}"),
    ]
