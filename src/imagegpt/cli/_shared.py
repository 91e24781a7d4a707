"""What the commands share: options, loading without noise, progress, and writing files whole or not at all."""

import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from PIL import Image

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


def check_png(path: Path, force: bool) -> None:
    """See that a PNG can be written to a path, before the slow work.

    Raises: ValueError or OSError, in one sentence, if its name, its folder or what is there already forbids it.
    """
    if path.suffix.lower() != ".png":
        raise ValueError(f"--out is {path}: images are written as PNG, choose a name that ends in .png")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file")
    _refuse_to_overwrite([path], force)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder {path.parent}: make it first, or choose another place for {path.name}"
        )
    _check_writable(path.parent)


def check_singles(folder: Path | None, names: Sequence[str], force: bool) -> list[Path]:
    """See that single PNGs can be written into a folder, which is made later if it is not there.

    Returns: their paths; none if there is no folder.
    Raises: ValueError or OSError, in one sentence, if that cannot be.
    """
    if folder is None:
        return []
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: --singles wants a folder")
    if not folder.exists() and not folder.parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder.parent}: make it first, or choose another place for --singles"
        )
    paths = [folder / name for name in names]
    _refuse_to_overwrite(paths, force)
    _check_writable(folder if folder.exists() else folder.parent)
    return paths


def write_pngs(images: Mapping[Path, "Image.Image"], facts: Mapping[str, Any]) -> None:
    """Write images with facts in their metadata: all of them, or none.

    Every file is written under a temporary name beside its place, and they are renamed when all are complete. Folders
    that do not exist are made, and removed again on failure.

    Raises: OSError if that fails.
    """
    from PIL.PngImagePlugin import PngInfo

    from imagegpt import __version__

    info = PngInfo()
    info.add_text("Software", f"imagegpt {__version__}")
    info.add_text("Comment", "created with iGPT")
    for key, value in facts.items():
        info.add_itxt(key, str(value))
    temporary: dict[Path, Path] = {}
    made: list[Path] = []
    path = None
    try:
        for path, image in images.items():
            if not path.parent.exists():
                path.parent.mkdir()
                made.append(path.parent)
            temporary[path] = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
            image.save(temporary[path], format="PNG", pnginfo=info)
        while temporary:
            path, whole = next(iter(temporary.items()))
            whole.replace(path)
            del temporary[path]
        made.clear()
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{path} cannot be written ({reason}): free some space or choose another place") from error
    finally:
        for rest in temporary.values():
            rest.unlink(missing_ok=True)
        for folder in made:
            folder.rmdir()


def _refuse_to_overwrite(paths: Sequence[Path], force: bool) -> None:
    there = [path for path in paths if os.path.lexists(path)]
    if there and not force:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise FileExistsError(f"{there[0]}{more} exists already: give --force to overwrite it")


def _check_writable(folder: Path) -> None:
    """Make a file and take it away again: permissions alone do not tell, on a read-only disk for one."""
    probe = folder / f".imagegpt.{secrets.token_hex(4)}.tmp"
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise OSError(f"{folder} cannot be written to ({error.strerror}): choose another folder") from error
