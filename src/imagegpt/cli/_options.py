"""Options shared by several commands, and parsers for numbers, paths and devices."""

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
    """Parse a number within a range from the command line."""

    range: ranges.Range[Any]

    def __call__(self, text: str) -> Any:
        """Return the number.

        Raises: typer.BadParameter, to which typer adds the option's name, unless the text is a number in the range.
        """
        try:
            return self.range.parse(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None


def number_option(allowed: ranges.Range[Any], help_text: str, *, show_default: bool | str = True) -> Any:
    """Declare an option that takes a number.

    Args:
        allowed: range of the number.
        help_text: for `--help`.
        show_default: whether `--help` shows the default, or the text to show in its place.
    """
    parser = NumberParser(allowed)
    return typer.Option(help=help_text, parser=parser, metavar=allowed.bounds, show_default=show_default)


def path_option(help_text: str, *, show_default: bool | str = True) -> Any:
    """Declare an option that takes the path of a file or folder."""
    return typer.Option(help=help_text, parser=read_path, metavar="PATH", show_default=show_default)


def path_argument(help_text: str, *, metavar: str | None = None) -> Any:
    """Declare an argument that takes one or more paths."""
    return typer.Argument(help=help_text, parser=read_path, metavar=metavar, show_default=False)


def name_option(help_text: str, *, show_default: bool | str = True) -> Any:
    """Declare an option that takes a name, for example of a model, or a path."""
    return typer.Option(help=help_text, parser=expand_home, show_default=show_default)


def name_argument(help_text: str, *, show_default: bool = False) -> Any:
    """Declare an argument that takes a name, for example of a model, or a path."""
    return typer.Argument(help=help_text, parser=expand_home, show_default=show_default)


def expand_home(text: str) -> str:
    """Replace `~` or `~user` at the start of the text by the home folder; shells do not in `--option=~/path`.

    Raises: typer.BadParameter if there is no such home folder, or the text is empty.
    """
    if not text:
        raise typer.BadParameter("it is empty: give a name or a path")
    try:
        return paths.expand_home(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def read_path(text: str | Path) -> Path:
    """Convert text to a path, see `expand_home`; defaults are paths already.

    Raises: typer.BadParameter if the text is empty, or there is no such home folder.
    """
    return Path(expand_home(text)) if isinstance(text, str) else text


def read_device(text: str) -> str:
    """Check the name of a device.

    Raises: typer.BadParameter unless it is one that models run on.
    """
    if text == "mps":
        raise typer.BadParameter("Apple's GPUs (mps) lack float64, which sampling needs: give cpu, or leave it out")
    if not _DEVICE.fullmatch(text):
        raise typer.BadParameter(f"there is no device {text!r}: give cpu, cuda or cuda:1")
    return text


ModelOption = Annotated[str, name_option("A bundled model, a folder, or owner/model on the hub.")]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit, for a model on the hub.")]
SeedOption = Annotated[int, number_option(ranges.SEED, "Random seed: the same seed gives the same images.")]
TemperatureOption = Annotated[
    float, number_option(ranges.TEMPERATURE, "Sampling temperature; 0 always takes the most likely colour.")
]
TopKOption = Annotated[int | None, number_option(ranges.TOP_K, "Sample from the k most likely colours only.")]
TopPOption = Annotated[
    float | None, number_option(ranges.TOP_P, "Sample from the most likely colours up to this total probability.")
]
MinPOption = Annotated[
    float | None,
    number_option(ranges.MIN_P, "Sample from colours at least this fraction as likely as the most likely one."),
]
ImagesArgument = Annotated[list[Path], path_argument("Image files of any kind and size.", metavar="IMAGE...")]
SinglesOption = Annotated[Path | None, path_option("Folder for the individual images, one PNG each.")]
GifOption = Annotated[Path | None, path_option("GIF that shows the images appearing pixel by pixel.")]
MaxBrokenOption = Annotated[
    float,
    number_option(ranges.BROKEN_FRACTION, "Fraction of the images that may be broken; these are skipped and listed."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite existing results.")]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        help="cpu, cuda or cuda:1 ...", parser=read_device, metavar="DEVICE", show_default="cuda if available"
    ),
]
PrecisionOption = Annotated[
    Literal["auto", "float32", "bfloat16", "int8"] | None,
    typer.Option(
        help="Precision of the weights: fewer bits are faster and give nearly the same images. auto is bfloat16 on "
        "devices that are fast at it, else float32.",
        show_default="float32",
    ),
]
DecoderOption = Annotated[
    Literal["sequential", "parallel"],
    typer.Option(help="Sample pixel by pixel, or guess and verify several pixels at a time: the same images."),
]
MaxMemoryOption = Annotated[
    float | None,
    number_option(ranges.MEMORY_GB, "Maximum memory for weights, keys and values, in GB.", show_default="no limit"),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object to stdout instead of text; progress goes to stderr.")
]
BatchSizeOption = Annotated[
    int | None, number_option(ranges.BATCH_SIZE, "Images per batch.", show_default="what memory allows")
]
ImageFormatOption = Annotated[
    Literal["png", "npz", "arrow", "parquet"] | None,
    typer.Option(
        "--format", help="Format of the files in a folder: images, or shards of colour ids.", show_default="png"
    ),
]
WorkersOption = Annotated[int, number_option(ranges.WORKERS, "Processes that fill a folder.")]
ExecutorOption = Annotated[
    Literal["local", "ray"], typer.Option(help="Run the processes on this machine or on a Ray cluster.")
]
KeepOption = Annotated[
    float | None, number_option(ranges.KEEP, "Fraction of the pixels to keep, from the top.", show_default="0.5")
]
RowsOption = Annotated[int | None, number_option(ranges.ROWS, "Rows of pixels to keep, from the top.")]
KeptMaskOption = Annotated[Path | None, path_option("A mask: white for the pixels to keep, all above the black ones.")]
