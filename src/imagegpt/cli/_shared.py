"""What the commands share: options, loading without noise, progress."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from imagegpt import ranges
from imagegpt.cli.building_ahead import build_ahead

if TYPE_CHECKING:
    from imagegpt.pipeline import ImageGPTPipeline


@dataclass(frozen=True)
class NumberParser:
    """Reads a number of a range from the command line."""

    range: ranges.Range[Any]

    def __call__(self, text: str) -> Any:
        """The number.

        Raises: typer.BadParameter, to which typer adds the option's name, unless the text is a number of the range.
        """
        try:
            return self.range.parse(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None


def number(allowed: ranges.Range[Any], about: str, *, show_default: bool | str = True) -> Any:
    """The option of a command that takes a number.

    Args:
        allowed: which numbers.
        about: what it is, for `--help`.
        show_default: as typer has it.
    """
    return typer.Option(help=about, parser=NumberParser(allowed), metavar=allowed.bounds, show_default=show_default)


ModelOption = Annotated[str, typer.Option(help="A bundled model, a folder, or owner/model on the hub.")]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit, for a model on the hub.")]
SeedOption = Annotated[int, number(ranges.SEED, "The same seed gives the same images.")]
TemperatureOption = Annotated[float, number(ranges.TEMPERATURE, "Below 1 bolder, 0 always the likeliest colour.")]
TopKOption = Annotated[int | None, number(ranges.TOP_K, "Draw from the k likeliest colours only.")]
TopPOption = Annotated[float | None, number(ranges.TOP_P, "Draw from the likeliest colours of this total probability.")]
MinPOption = Annotated[
    float | None, number(ranges.MIN_P, "Draw from colours at least this share as likely as the best.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...", show_default="cuda if there is one")]
PrecisionOption = Annotated[
    Literal["auto", "float32", "bfloat16", "int8"] | None,
    typer.Option(
        help="Of the weights: fewer bits, more speed, nearly the same images. auto is bfloat16 where the device "
        "multiplies it, else float32.",
        show_default="float32",
    ),
]
DecoderOption = Annotated[
    Literal["sequential", "parallel"],
    typer.Option(help="Pixel by pixel, or guessing several at a time: the same images."),
]
MaxMemoryOption = Annotated[
    float | None,
    number(ranges.MEMORY_GB, "GB that weights, keys and values may take.", show_default="no limit"),
]
BatchSizeOption = Annotated[int | None, number(ranges.BATCH, "Images at a time.", show_default="by memory")]


def say_next(told: str) -> None:
    """Name a command that goes on with what was just made, on stderr; see `imagegpt.commands`."""
    stderr_console().print(f"Next: {told}", markup=False, soft_wrap=True)


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


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Which model, and how it is loaded and run; the options of these names."""

    model: str
    revision: str | None
    device: str | None
    precision: Literal["auto", "float32", "bfloat16", "int8"] | None
    decoder: Literal["sequential", "parallel"]
    max_memory: float | None

    def pipeline(self, *, speaks: bool = True) -> "ImageGPTPipeline":
        """Load the model, and say so, and which precision "auto" was, if this process is the one that speaks."""
        with working(f"loading {self.model}"):
            build_ahead(self.model, self.precision, self.device)
            from imagegpt.pipeline import ImageGPTPipeline

            quiet_libraries()
            pipe = ImageGPTPipeline.from_pretrained(
                self.model,
                device=self.device,
                revision=self.revision,
                precision=self.precision,
                decoder=self.decoder,
                max_memory=None if self.max_memory is None else max(1, round(self.max_memory * 1e9)),
            )
        if speaks and self.precision == "auto":
            from imagegpt.precision import choose_precision

            told = f"precision: {choose_precision('auto', pipe.model.device)}"
            stderr_console().print(told, markup=False, soft_wrap=True)
        return pipe
