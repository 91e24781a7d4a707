"""`imagegpt bench`: how fast this machine draws with a model, beside transformers and beside its own memory."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

from imagegpt.cli import _checks, _console, _loading, _options
from imagegpt.common import ranges
from imagegpt.common.text import printable

if TYPE_CHECKING:
    from imagegpt.benchmarking import BenchOptions, BenchResult, Measurement

_SIZES = ("small", "medium", "large", "xl")  # as in `imagegpt.config`, whose import takes seconds
_WIDTH = 118  # of the table, where stdout is no terminal
_SMALL_BYTES = 32e6


def bench(
    model: Annotated[
        str,
        _options.name_argument(
            "A bundled model, a folder, owner/model on the hub, or small, medium, large, xl.", show_default=True
        ),
    ] = "digits",
    batch: Annotated[str, typer.Option(help="Images drawn at once, as in 1,8.")] = "1",
    pixels: Annotated[
        int | None,
        _options.number(ranges.PIXELS, "Of each image.", show_default="all, or fewer if that takes long"),
    ] = None,
    repeats: Annotated[int, _options.number(ranges.REPEATS, "Timed rounds.")] = 3,
    precision: Annotated[str, typer.Option(help="Of the weights: float32, bfloat16, int8, or several.")] = "float32",
    decoder: Annotated[
        str, typer.Option(help="sequential, parallel, or both as in sequential,parallel.")
    ] = "sequential",
    device: _options.DeviceOption = None,
    compare: Annotated[
        bool, typer.Option("--compare/--no-compare", help="Measure transformers' ImageGPT too, on the same weights.")
    ] = True,
    out: Annotated[Path | None, _options.path_option("Add the line of JSON to this file.", "--json")] = None,
) -> None:
    """Measure drawing on this machine: time, memory, and the share of the memory bandwidth that is put to use.

    The named sizes have random weights. What compiling takes, once, is not counted. The last line of the output holds
    everything as JSON.
    """
    _check_file(out)
    if model not in _SIZES:
        _checks.check_model(model)
    batches, precisions, decoders = _batches(batch), _words(precision), _words(decoder)
    with _console.working("loading torch"):
        from imagegpt.benchmarking import BenchOptions, run_benchmark
        from imagegpt.benchmarking.timing import environment
        from imagegpt.pipeline.options import choose_device

        _loading.quiet_libraries()
    options = BenchOptions(
        model=model,
        batches=batches,
        precisions=precisions,
        decoders=decoders,
        num_pixels=pixels,
        repeats=repeats,
        device=str(choose_device(device)),
        compare=compare,
    )
    with _progress(model) as report:
        result = run_benchmark(options, report)
    facts = environment("imagegpt")
    _print_result(result, options, facts)
    line = json.dumps({"benchmark": "bench", **facts, "settings": asdict(options), **asdict(result)})
    _console.echo(line)
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _check_file(path: Path | None) -> None:
    """See that a line can be added to a file, before the slow work."""
    if path is None:
        return
    if path.is_dir():
        raise IsADirectoryError(f"--json is {path}, a folder: give the name of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}: make it first, or choose another place for --json")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(f"--json is {path}, which cannot be written to: choose another place")


def _batches(text: str) -> list[int]:
    try:
        return [ranges.BATCH.parse(part.strip()) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--batch is {text!r}, and {error}: give numbers of images, as in 1,8") from None


def _words(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


@contextmanager
def _progress(model: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr, gone when done; gives the function to call before each run."""
    console = _console.stderr_console()
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), _console.text_column("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(printable(f"loading {model}"), total=None)
        yield lambda what, done, total: bar.update(task, description=printable(what), completed=done, total=total)


def _print_result(result: "BenchResult", options: "BenchOptions", facts: dict[str, Any]) -> None:
    title = _console.plain(f"{options.model}, {facts['device']}, threads: {facts['threads']}")
    table = Table(title=title, title_justify="left")
    table.add_column("drawn by")
    for name in ("images", "ms a pixel", "least - most", "at best", "share", "images/s", "memory", "faster"):
        table.add_column(name, justify="right")
    for one in result.measurements:
        _console.add_row(table, *_cells(one, result.num_pixels))
    _console.print_table(table, width=None if sys.stdout.isatty() else _WIDTH)
    for sentence in _notes(result, options):
        _console.echo(sentence)


def _cells(one: "Measurement", num_pixels: int) -> list[str]:
    least, most = (1e3 * seconds / num_pixels for seconds in (min(one.seconds), max(one.seconds)))
    return [
        f"{one.who} {one.precision}{' parallel' if one.decoder == 'parallel' else ''}",
        str(one.batch),
        f"{one.ms_per_pixel:.3g}",
        f"{least:.3g} - {most:.3g}",
        f"{one.floor_ms:.2g}",
        f"{one.share:.1%}",
        f"{one.images_per_s:.3g}",
        "-" if one.peak_bytes is None else f"{one.peak_bytes / 1e6:,.0f} MB",
        "" if one.speedup is None else f"{one.speedup['median']:.2f}x",
    ]


def _notes(result: "BenchResult", options: "BenchOptions") -> Iterator[str]:
    best, median = (result.read_bytes_per_s[name] / 1e9 for name in ("best", "median"))
    yield (
        "A pixel needs all weights, and the keys and values before it. At best: the time to read them from memory, "
        f"at {best:.1f} GB/s (median {median:.1f}). Share: how near the measured time is to that."
    )
    if any(1e-3 * one.floor_ms * 1e9 * best < _SMALL_BYTES for one in result.measurements):
        yield "So small a model stays in the processor's caches: its share says little."
    yield "Memory: what one contestant adds to a process of its own while it draws."
    for one in result.measurements:
        if one.pixels_per_pass is not None:
            yield _about_parallel(one)
    if result.same_parallel_images is not None:
        yield f"Both decoders drew {'the same' if result.same_parallel_images else 'NOT the same'} pixels in float32."
    if result.num_pixels < result.image_pixels:
        long = "" if result.whole_s is None else f"; whole images would have taken about {result.whole_s / 60:.0f} min"
        yield (
            f"Drawn were the first {result.num_pixels} of {result.image_pixels} pixels{long} "
            f"(--pixels {result.image_pixels}). Later ones take longer, so images/s is somewhat too high."
        )
    if result.same_greedy_pixels is not None:
        same = "the same" if result.same_greedy_pixels else "NOT the same"
        yield f"Faster: than the fastest of transformers. Both make {same} likeliest pixels."
    elif options.compare:
        yield f"{result.not_compared}."


def _about_parallel(one: "Measurement") -> str:
    """What the parallel decoder did, in a sentence."""
    lengths, faster = one.run_lengths or {}, one.over_sequential
    often = ", ".join(f"{count} of {length}" for length, count in lengths.items())
    images = f"{one.batch} image{'' if one.batch == 1 else 's'}"
    told = f"Parallel, {one.precision}, {images}: {one.pixels_per_pass:.2f} pixels a pass"
    if faster is not None:
        told += f", {faster['median']:.2f}x as fast as one by one ({faster['min']:.2f} - {faster['max']:.2f})"
    return f"{told}; passes by positions fed: {often}."
