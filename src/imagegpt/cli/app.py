"""The command line as a whole: which commands there are, and what becomes of an error.

What a user did wrong is told in one sentence on stderr, exit code 2. Ctrl-C ends with 130. Anything else is our mistake
and shows its traceback, as does `imagegpt --traceback COMMAND` always. Commands import torch when they run, so that
`imagegpt --help` is quick.
"""

import atexit
import gc
import os
import signal
import sys
from functools import partial
from typing import Annotated, NoReturn

import typer

from imagegpt.cli._console import echo, lenient_streams, plain, stderr_console, warnings_in_words
from imagegpt.cli._openmp import set_wait_policy
from imagegpt.cli.bench import bench
from imagegpt.cli.cache import cache
from imagegpt.cli.complete import complete
from imagegpt.cli.convert import convert_app, export_app, inspect
from imagegpt.cli.download import download
from imagegpt.cli.encode import encode
from imagegpt.cli.env import env
from imagegpt.cli.evaluate import evaluate
from imagegpt.cli.fill import fill
from imagegpt.cli.finetune import finetune
from imagegpt.cli.info import info
from imagegpt.cli.models import models
from imagegpt.cli.palette import palette_app
from imagegpt.cli.sample import sample
from imagegpt.cli.train import train

app = typer.Typer(
    name="imagegpt",
    help="Sample, complete and score images with ImageGPT, pixel by pixel.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(no_args_is_help=True)(complete)
app.command()(sample)
app.command(no_args_is_help=True)(info)
app.command()(models)
app.command(no_args_is_help=True)(encode)
app.command()(evaluate)
app.command()(bench)
app.add_typer(palette_app, name="palette")
app.command(no_args_is_help=True)(train)
app.command(no_args_is_help=True)(finetune)
app.command(no_args_is_help=True)(fill)
app.add_typer(convert_app, name="convert")
app.add_typer(export_app, name="export")
app.command(no_args_is_help=True)(inspect)
app.command(no_args_is_help=True)(download)
app.command()(env)
app.command()(cache)


def _show_version(wanted: bool) -> None:
    if wanted:
        from imagegpt import __version__

        echo(f"imagegpt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error comes from.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass  # `main` looks for --traceback itself: an error may come before the options are read


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line; ends in `SystemExit` with 0, or 2 after a user's error, or 130 after Ctrl-C.

    Args:
        args: the words after `imagegpt`; None takes them from the shell.
    """
    interrupts: list[int] = []
    if args is None:  # this process is ours
        set_wait_policy(os.environ)
        _collect_rarely()
        signal.signal(signal.SIGINT, partial(_interrupt, interrupts))
    arguments = sys.argv[1:] if args is None else args
    with lenient_streams(), warnings_in_words():
        try:
            status = app(args=arguments, prog_name="imagegpt", standalone_mode=False)
        except (Exception, KeyboardInterrupt) as error:
            if interrupts or isinstance(error, typer.Abort | KeyboardInterrupt):
                if args is None:
                    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process is ending: a second one adds nothing
                _fail("stopped", 130)
            if isinstance(error, BrokenPipeError) and _reader_is_gone():
                raise SystemExit(1) from None
            sentence = _sentence(error, with_traceback="--traceback" in arguments)
            if sentence is None:
                raise
            if not sentence:  # typer's way to end after it has shown the help, because there were no arguments
                raise SystemExit(2) from None
            _fail(sentence, 2)
        if status == 130:  # typer turns Ctrl-C into this
            _fail("stopped", 130)
        raise SystemExit(status if isinstance(status, int) else 0)


def _interrupt(interrupts: list[int], number: int, _: object) -> NoReturn:
    """What Ctrl-C does: libraries that are being imported may turn `KeyboardInterrupt` into an error of their own."""
    interrupts.append(number)
    raise KeyboardInterrupt


def _reader_is_gone() -> bool:
    """Whether nobody reads our output any more, as in `imagegpt models | head -1`; if so, the rest goes nowhere."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _collect_rarely() -> None:
    """Look for garbage rarely, and not at all at the end of the process.

    torch and transformers make half a million objects while they are imported, none of them garbage, and Python would
    walk through all of them again and again: 2 s of the 6 s of processor time of `imagegpt sample --num 1`. Training
    and sampling leave no cycles for the collector, so what waits for it is small.
    """
    gc.set_threshold(20_000, 50, 50)
    atexit.register(gc.freeze)


def _sentence(error: BaseException, *, with_traceback: bool) -> str | None:
    """What a user is told of an error; None if it is to show where it comes from, as all do `with_traceback`."""
    if isinstance(error, typer.TyperException):
        message = error.format_message().rstrip(".")
        return message and f"{message}; see imagegpt --help"
    if with_traceback:
        return None
    if isinstance(error, OSError) and error.strerror:  # the system's errors say which file they mean
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    if isinstance(error, ValueError | OSError):
        return " ".join(str(error).split()) or type(error).__name__
    if _is_out_of_memory(error):
        return "there is not enough memory: choose a smaller --batch-size, or a smaller model"
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    # torch raises its own error on a GPU and a bare RuntimeError on a CPU; it may not be imported for asking.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def _fail(sentence: str, status: int) -> NoReturn:
    console = stderr_console()
    console.print("error:", style="red", end=" ")
    console.print(plain(sentence), soft_wrap=True)
    raise SystemExit(status)
