"""The report of `imagegpt bench`: a table, and notes on how to read it."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table

from imagegpt.cli import _console

if TYPE_CHECKING:
    from imagegpt.benchmarking import BenchmarkOptions, BenchmarkResult, Measurement

_WIDTH = 118  # of the table if stdout is not a terminal
_CACHE_SIZED_BYTES = 32e6  # read per step, below which a model may stay in the CPU's caches


def print_report(result: "BenchmarkResult", options: "BenchmarkOptions", device: str, num_threads: int) -> None:
    """Print the results on stdout.

    Args:
        result: of `run_benchmark`.
        options: of the benchmark.
        device: name of the CPU or GPU.
        num_threads: CPU threads.
    """
    title = f"{options.model}, {device}, threads: {num_threads}"
    table = Table(title=_console.plain_text(title), title_justify="left")
    table.add_column("implementation")
    for name in ("batch", "ms/pixel", "min - max", "roofline", "bandwidth", "images/s", "memory", "speedup"):
        table.add_column(name, justify="right")
    for one in result.measurements:
        _console.add_row(table, *_cells(one, result.num_pixels))
    _console.print_table(table, width=None if sys.stdout.isatty() else _WIDTH)
    for note in _notes(result, options):
        _console.echo(note)


def _cells(one: "Measurement", num_pixels: int) -> list[str]:
    fastest, slowest = (1e3 * seconds / num_pixels for seconds in (min(one.seconds), max(one.seconds)))
    return [
        f"{one.library} {one.precision}{' parallel' if one.decoder == 'parallel' else ''}",
        str(one.batch),
        f"{one.ms_per_pixel:.3g}",
        f"{fastest:.3g} - {slowest:.3g}",
        f"{one.roofline_ms:.2g}",
        f"{one.bandwidth_fraction:.1%}",
        f"{one.images_per_s:.3g}",
        "-" if one.peak_bytes is None else f"{one.peak_bytes / 1e6:,.0f} MB",
        "" if one.speedup is None else f"{one.speedup['median']:.2f}x",
    ]


def _notes(result: "BenchmarkResult", options: "BenchmarkOptions") -> Iterator[str]:
    best, median = (result.read_bytes_per_s[name] / 1e9 for name in ("best", "median"))
    yield (
        "Each pixel needs all weights, and the keys and values of all earlier pixels. Roofline: the time to read them "
        f"at {best:.1f} GB/s, the best bandwidth measured (median {median:.1f}). Bandwidth: the fraction of it in use."
    )
    if any(1e-3 * one.roofline_ms * 1e9 * best < _CACHE_SIZED_BYTES for one in result.measurements):
        yield "This model fits into the CPU's caches, where the bandwidth column says little."
    yield "Memory: what sampling adds to a process that has loaded torch."
    for one in result.measurements:
        if one.pixels_per_pass is not None:
            yield _parallel_note(one)
    if result.decoders_match is not None:
        yield f"Both decoders sampled {'the same' if result.decoders_match else 'DIFFERENT'} pixels in float32."
    if result.num_pixels < result.image_pixels:
        full_s = result.estimated_full_s
        estimate = "" if full_s is None else f"; whole images would take about {full_s / 60:.0f} min"
        yield (
            f"Only the first {result.num_pixels} of {result.image_pixels} pixels were sampled{estimate} "
            f"(--pixels {result.image_pixels}). Later pixels take longer, so images/s is slightly too high."
        )
    if result.greedy_pixels_match is not None:
        same = "the same" if result.greedy_pixels_match else "DIFFERENT"
        yield f"Speedup: over the fastest of transformers. Both libraries produce {same} greedy pixels."
    elif options.compare:
        yield f"transformers was {result.not_compared}."


def _parallel_note(one: "Measurement") -> str:
    """Statistics of the parallel decoder, in a sentence."""
    speedup = one.speedup_over_sequential
    passes = ", ".join(f"{count} of {length}" for length, count in (one.passes_by_length or {}).items())
    note = f"Parallel, {one.precision}, batch {one.batch}: {one.pixels_per_pass:.2f} pixels per pass"
    if speedup is not None:
        note += f", {speedup['median']:.2f}x as fast as sequential ({speedup['min']:.2f} - {speedup['max']:.2f})"
    return f"{note}; passes by positions fed: {passes}."
