"""`imagegpt bench`: measure sampling on this machine, and compare with transformers and the memory bandwidth."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from imagegpt.cli import _bench_report, _checks, _console, _loading, _options
from imagegpt.common import ranges
from imagegpt.common.text import printable

_SIZES = ("small", "medium", "large", "xl")  # as in `imagegpt.config`, which takes seconds to import


def bench(
    model: Annotated[
        str,
        _options.name_argument(
            "A bundled model, a folder, owner/model on the hub, or small, medium, large, xl.", show_default=True
        ),
    ] = "digits",
    batch: Annotated[str, typer.Option(help="Batch sizes, for example 1,8.")] = "1",
    pixels: Annotated[
        int | None,
        _options.number_option(ranges.PIXELS, "Pixels per image.", show_default="all, or fewer if that takes long"),
    ] = None,
    repeats: Annotated[int, _options.number_option(ranges.REPEATS, "Timed rounds.")] = 3,
    precision: Annotated[str, typer.Option(help="Of the weights: float32, bfloat16, int8, or several.")] = "float32",
    decoder: Annotated[str, typer.Option(help="sequential, parallel, or sequential,parallel.")] = "sequential",
    device: _options.DeviceOption = None,
    compare: Annotated[
        bool, typer.Option("--compare/--no-compare", help="Measure transformers' ImageGPT too, on the same weights.")
    ] = True,
    out: Annotated[Path | None, _options.path_option("Append the results to this file, as one line of JSON.")] = None,
    as_json: _options.JsonOption = False,
) -> None:
    """Measure sampling on this machine: time, memory, and the fraction of the memory bandwidth that is used.

    The named sizes have random weights. The time to compile the kernels, once, is not included.
    """
    _check_out(out)
    if model not in _SIZES:
        _checks.check_model(model)
    batches = _parse_batches(batch)
    with _console.spinner("loading torch"):
        from imagegpt.benchmarking import BenchmarkOptions, run_benchmark
        from imagegpt.benchmarking.timing import environment
        from imagegpt.common.devices import choose_device

        _loading.quiet_libraries()
    options = BenchmarkOptions(
        model=model, batches=batches, precisions=_split(precision), decoders=_split(decoder), num_pixels=pixels,
        repeats=repeats, device=str(choose_device(device)), compare=compare,
    )  # fmt: skip
    with _progress(model) as on_progress:
        result = run_benchmark(options, on_progress)
    record = {"benchmark": "bench", **environment("imagegpt"), "settings": asdict(options), **asdict(result)}
    if as_json:
        _console.print_json(record)
    else:
        _bench_report.print_report(result, options, record["device"], record["threads"])
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _check_out(path: Path | None) -> None:
    """Check that --out can be appended to, before the slow work."""
    if path is None:
        return
    if path.is_dir():
        raise IsADirectoryError(f"--out is {path}, a folder: give the name of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}: create it first, or choose another path for --out")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(f"--out is {path}, which cannot be written to: choose another path")


def _parse_batches(text: str) -> list[int]:
    try:
        return [ranges.BATCH_SIZE.parse(part.strip()) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--batch is {text!r}, and {error}: give batch sizes, for example 1,8") from None


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


@contextmanager
def _progress(model: str) -> Iterator[Callable[[str, int, int], None]]:
    """A transient progress bar on stderr; yields the `on_progress` of `run_benchmark`."""
    console = _console.stderr_console()
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), _console.text_column("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(printable(f"loading {model}"), total=None)
        yield lambda text, done, total: bar.update(task, description=printable(text), completed=done, total=total)
