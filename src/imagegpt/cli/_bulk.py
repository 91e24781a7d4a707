"""The folder side of `imagegpt sample`: processes and their GPUs, progress, and what is said when it is stopped."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.progress import BarColumn, Progress, TextColumn

from imagegpt.cli import _shared

if TYPE_CHECKING:
    from imagegpt.bulk import Workers
    from imagegpt.pipeline import RuleOptions

_LINE_EVERY_S = 60.0  # where stderr is no terminal


def sample_into_folder(
    out: Path,
    num: int,
    loading: _shared.Loading,
    rule_options: "RuleOptions",
    seed: int,
    file_format: str,
    batch_size: int | None,
    force: bool,
) -> None:
    """Draw the images that are not in the folder yet; only process 0 speaks."""
    with _shared.working("loading"):
        from imagegpt.bulk import Workers, check_folder, check_format, sample_many
        from imagegpt.sampling import SamplingRules

    workers = Workers.from_environment(os.environ)
    rules = SamplingRules(**rule_options)
    check_format(file_format)
    if workers.rank == 0:
        check_folder(out)
    _use_cores(workers)
    pipe = replace(loading, device=device_of(workers, loading.device)).pipeline()
    with _stopping(out, workers), _image_progress("sampling", shown=workers.rank == 0) as progress:
        sample_many(
            pipe,
            num,
            out,
            seed=seed,
            rules=rules,
            file_format=file_format,
            batch_size=batch_size,
            name=loading.model,
            force=force,
            workers=workers,
            progress=progress,
        )
    if workers.rank == 0:
        typer.echo(f"{num} {'image' if num == 1 else 'images'}: {out}")


def device_of(workers: "Workers", asked: str | None) -> str | None:
    """The device of this process: one of its own where several processes of a machine shall use its GPUs."""
    import torch

    if workers.local_world_size == 1 or asked not in (None, "cuda") or not torch.cuda.is_available():
        return asked
    return f"cuda:{workers.local_rank % torch.cuda.device_count()}"


def _use_cores(workers: "Workers") -> None:
    """Share the cores of a machine out among its processes, unless the launcher or the user has done so."""
    if workers.local_world_size > 1 and "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // workers.local_world_size))


class _Terminated(BaseException):
    """SIGTERM came: a machine is being taken away, or a launcher ends its processes."""


@contextmanager
def _stopping(out: Path, workers: "Workers") -> Iterator[None]:
    """On Ctrl-C or SIGTERM say how to go on, and end with 130 or 143."""

    def terminate(*_: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except (KeyboardInterrupt, _Terminated) as stop:
        if workers.rank == 0:
            from imagegpt.bulk import count_images

            done, total = count_images(out)
            console = _shared.stderr_console()
            console.print(
                f"stopped: {done:,} of {total:,} images are in {out}, the same command goes on from there",
                markup=False,
                soft_wrap=True,
            )
        raise SystemExit(130 if isinstance(stop, KeyboardInterrupt) else 143) from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _image_progress(what: str, shown: bool) -> Iterator[Callable[[float, int], None]]:
    """A bar on stderr, gone when done, or a line a minute; gives the function to call with images done and in all."""
    console = _shared.stderr_console()
    columns = (TextColumn(what), BarColumn(), TextColumn("{task.fields[told]}"))
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        first: tuple[float, float] | None = None
        task, line_at = bar.add_task(what, total=None, told=""), time.monotonic() + _LINE_EVERY_S

        def show(done: float, total: int) -> None:
            nonlocal first, line_at
            now = time.monotonic()
            if first is None:
                first = now, done
                if done:
                    console.print(f"going on: {int(done):,} of {total:,} images are there")
            told = progress_text(done, total, done - first[1], now - first[0])
            bar.update(task, completed=done, total=total, told=told)
            if not console.is_terminal and now >= line_at:
                line_at = now + _LINE_EVERY_S
                console.print(f"{what}: {told}", soft_wrap=True)

        yield show


def progress_text(done: float, total: int, drawn: float, elapsed_s: float) -> str:
    """Images of all, images a second, time left; the latter two as soon as something has been drawn."""
    told = f"{int(done):,} of {total:,} images"
    if drawn <= 0 or elapsed_s <= 0:
        return told
    rate = drawn / elapsed_s
    seconds = round((total - done) / rate)
    left = f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return f"{told}, {rate:,.0f} images/s, {left} left" if rate >= 10 else f"{told}, {rate:.2g} images/s, {left} left"
