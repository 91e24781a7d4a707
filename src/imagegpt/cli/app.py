"""The command line: registers the commands and turns errors into messages and exit codes.

A user's mistake prints one sentence to stderr, with exit code 2. Ctrl-C exits with 130. Any other error is a bug and
shows its traceback, as does every error under `imagegpt --traceback COMMAND`. Commands import torch when they run, so
that `imagegpt --help` is fast.
"""

import atexit
import gc
import importlib
import inspect
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NoReturn

import typer

from imagegpt.cli._console import echo, lenient_streams, plain_text, short_warnings, stderr_console
from imagegpt.cli._openmp import set_wait_policy

# One line per command, in the order of `imagegpt --help`. A command is a file of this folder that defines a function of
# the same name, or, for a group of subcommands, a `typer.Typer` called `app`.
_COMMANDS = (
    "complete",
    "sample",
    "info",
    "models",
    "encode",
    "evaluate",
    "bench",
    "palette",
    "train",
    "finetune",
    "fill",
    "convert",
    "export",
    "inspect",
    "download",
    "env",
    "cache",
)

app = typer.Typer(
    name="imagegpt",
    help="Sample, complete and score images with ImageGPT, pixel by pixel.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _register(name: str) -> None:
    module = importlib.import_module(f"imagegpt.cli.{name}")
    if hasattr(module, "app"):
        app.add_typer(module.app, name=name)
        return
    command: Callable[..., Any] = getattr(module, name)
    parameters = inspect.signature(command).parameters.values()
    needs_arguments = any(parameter.default is parameter.empty for parameter in parameters)
    app.command(no_args_is_help=needs_arguments)(command)


for _name in _COMMANDS:
    _register(_name)


def _show_version(wanted: bool) -> None:
    if wanted:
        from imagegpt import __version__

        echo(f"imagegpt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass  # `main` looks for --traceback itself: an error may come before the options are read


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line. Raise SystemExit with 0, 2 after a user's mistake, or 130 after Ctrl-C.

    Args:
        args: arguments after `imagegpt`; None means those of this process.
    """
    interrupts: list[int] = []
    if args is None:  # this process runs nothing else
        set_wait_policy(os.environ)
        _reduce_garbage_collection()
        signal.signal(signal.SIGINT, partial(_interrupt, interrupts))
    arguments = sys.argv[1:] if args is None else args
    with lenient_streams(), short_warnings():
        try:
            status = app(args=arguments, prog_name="imagegpt", standalone_mode=False)
        except (Exception, KeyboardInterrupt) as error:
            if interrupts or isinstance(error, typer.Abort | KeyboardInterrupt):
                if args is None:
                    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ignore further interrupts while exiting
                _fail("stopped", 130)
            if isinstance(error, BrokenPipeError) and _is_stdout_closed():
                raise SystemExit(1) from None
            message = _error_message(error, with_traceback="--traceback" in arguments)
            if message is None:
                raise
            if not message:  # typer has shown the help, because there were no arguments
                raise SystemExit(2) from None
            _fail(message, 2)
        if status == 130:  # typer's exit code for Ctrl-C
            _fail("stopped", 130)
        raise SystemExit(status if isinstance(status, int) else 0)


def _interrupt(interrupts: list[int], number: int, _: object) -> NoReturn:
    """Record the interrupt and raise KeyboardInterrupt, which libraries may turn into other errors during import."""
    interrupts.append(number)
    raise KeyboardInterrupt


def _is_stdout_closed() -> bool:
    """Whether the reader of stdout has exited, as in `imagegpt models | head -1`; if so, discard further output."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _reduce_garbage_collection() -> None:
    """Collect garbage rarely, and not at all at exit.

    Importing torch and transformers creates half a million objects, none of them garbage, which Python would traverse
    again and again: 2 s of the 6 s of CPU time of `imagegpt sample --num 1`. Training and sampling create no reference
    cycles, so little garbage accumulates.
    """
    gc.set_threshold(20_000, 50, 50)
    atexit.register(gc.freeze)


def _error_message(error: BaseException, *, with_traceback: bool) -> str | None:
    """Return the message for an error, or None to show its traceback, as for all errors `with_traceback`."""
    if isinstance(error, typer.TyperException):
        message = error.format_message().rstrip(".")
        return message and f"{message}; see imagegpt --help"
    if with_traceback:
        return None
    if isinstance(error, OSError) and error.strerror:  # errors of the operating system carry the file name
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    if isinstance(error, ValueError | OSError):
        return " ".join(str(error).split()) or type(error).__name__
    if _is_out_of_memory(error):
        return "there is not enough memory: choose a smaller --batch-size, or a smaller model"
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    # torch raises its own type on a GPU and RuntimeError on a CPU; importing torch here would be slow.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def _fail(message: str, status: int) -> NoReturn:
    console = stderr_console()
    console.print("error:", style="red", end=" ")
    console.print(plain_text(message), soft_wrap=True)
    raise SystemExit(status)
