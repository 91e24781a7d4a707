"""What the commands share: options, loading without noise, progress."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from imagegpt.pipeline import ImageGPTPipeline

ModelOption = Annotated[str, typer.Option(help="A bundled model, a folder, or owner/model on the hub.")]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit, for a model on the hub.")]
SeedOption = Annotated[int, typer.Option(help="The same seed gives the same images.", min=0)]
TemperatureOption = Annotated[float, typer.Option(help="Below 1 bolder, 0 always the likeliest colour.", min=0)]
TopKOption = Annotated[int | None, typer.Option(help="Draw from the k likeliest colours only.", min=1)]
TopPOption = Annotated[float | None, typer.Option(help="Draw from the likeliest colours of this total probability.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...  [default: cuda if there is one]")]
DtypeOption = Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64.  [default: float32]")]
BatchSizeOption = Annotated[int | None, typer.Option(help="Images at a time.  [default: by memory]", min=1)]


def stderr_console() -> Console:
    """Where progress goes, so that stdout holds results only."""
    return Console(stderr=True, highlight=False)


def quiet_libraries() -> None:
    """Silence what transformers says while loading; what matters is an error here."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def working(what: str) -> Iterator[None]:
    """Say what is being done while it lasts."""
    console = stderr_console()
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


def load_pipeline(model: str, device: str | None, dtype: str | None, revision: str | None) -> "ImageGPTPipeline":
    """Load a model by name, saying so."""
    with working(f"loading {model}"):
        from imagegpt.pipeline import ImageGPTPipeline

        quiet_libraries()
        return ImageGPTPipeline.from_pretrained(model, device=device, dtype=dtype, revision=revision)


@contextmanager
def pixel_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, gone when done; gives the function to call with pixels done and pixels in all."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("pixels"))
    console = stderr_console()
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
