"""The options that several commands take, and how numbers, paths and devices are read from the command line."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from imagegpt.common import ranges
from imagegpt.files import paths

_DEVICE = re.compile(r"cpu|cuda(:\d+)?")


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


def path_option(about: str, *names: str, show_default: bool | str = True) -> Any:
    """The option of a command that takes the path of a file or a folder; `names` if it is not the parameter's."""
    return typer.Option(*names, help=about, parser=read_path, metavar="PATH", show_default=show_default)


def path_argument(about: str, *, metavar: str | None = None) -> Any:
    """An argument that is a path, or several."""
    return typer.Argument(help=about, parser=read_path, metavar=metavar, show_default=False)


def name_option(about: str, *, show_default: bool | str = True) -> Any:
    """The option of a command that takes a name, of a model for example, or a path."""
    return typer.Option(help=about, parser=expand_home, metavar="TEXT", show_default=show_default)


def name_argument(about: str, *, show_default: bool = False) -> Any:
    """An argument that is a name, of a model for example, or a path."""
    return typer.Argument(help=about, parser=expand_home, show_default=show_default)


def expand_home(text: str) -> str:
    """A text with `~` or `~name` at its start replaced by that home, as the shell does it where no `=` is before it.

    Raises: typer.BadParameter if there is no such home, or no text.
    """
    if not text:
        raise typer.BadParameter("it is empty: give a name or a path")
    try:
        return paths.expand_home(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def read_path(text: str | Path) -> Path:
    """The path that a text spells, see `expand_home`; defaults are paths already.

    Raises: typer.BadParameter if it is empty, or the home that it names is not there.
    """
    return Path(expand_home(text)) if isinstance(text, str) else text


def read_device(text: str) -> str:
    """A device as torch calls it, of those that models run on.

    Raises: typer.BadParameter for others.
    """
    if text == "mps":
        raise typer.BadParameter("Apple's GPUs (mps) lack float64, which sampling needs: give cpu, or leave it out")
    if not _DEVICE.fullmatch(text):
        raise typer.BadParameter(f"there is no device {text!r}: give cpu, cuda or cuda:1")
    return text


ModelOption = Annotated[str, name_option("A bundled model, a folder, or owner/model on the hub.")]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit, for a model on the hub.")]
SeedOption = Annotated[int, number(ranges.SEED, "The same seed gives the same images.")]
TemperatureOption = Annotated[float, number(ranges.TEMPERATURE, "Below 1 bolder, 0 always the likeliest colour.")]
TopKOption = Annotated[int | None, number(ranges.TOP_K, "Draw from the k likeliest colours only.")]
TopPOption = Annotated[float | None, number(ranges.TOP_P, "Draw from the likeliest colours of this total probability.")]
MinPOption = Annotated[
    float | None, number(ranges.MIN_P, "Draw from colours at least this share as likely as the best.")
]
ImagesArgument = Annotated[list[Path], path_argument("Images of any kind and size.", metavar="IMAGE...")]
SinglesOption = Annotated[Path | None, path_option("A folder for each image as a PNG of its own.")]
GifOption = Annotated[Path | None, path_option("Where an animation of the images appearing goes, as a GIF.")]
MaxBrokenOption = Annotated[
    float, number(ranges.BROKEN_SHARE, "The share of images that may be broken: they are left out and listed.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
DeviceOption = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1 ...", parser=read_device, metavar="TEXT", show_default="cuda if there is one"),
]
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
