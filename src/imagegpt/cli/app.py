"""The command line as a whole: which commands there are, and what becomes of an error.

What a user did wrong is told in one sentence on stderr, exit code 2. Ctrl-C ends with 130. Anything else is our mistake
and shows its traceback, as does `imagegpt --traceback COMMAND` always.
"""

import sys
from typing import Annotated

import click
import typer
from rich.console import Console

app = typer.Typer(
    name="imagegpt",
    help="Sample, complete and score images with ImageGPT, pixel by pixel.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from imagegpt import __version__

        typer.echo(f"imagegpt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error comes from.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    context.ensure_object(dict)["traceback"] = traceback


def main(args: list[str] | None = None) -> None:
    """Run the command line; ends in `SystemExit` with 0, or 2 after a user's error, or 130 after Ctrl-C.

    Args:
        args: the words after `imagegpt`; None takes them from the shell.
    """
    arguments = sys.argv[1:] if args is None else args
    try:
        status = app(args=arguments, standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _fail("stopped", 130)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except (ValueError, OSError) as error:
        if "--traceback" in arguments:
            raise
        _fail(_sentence(error), 2)
    else:
        raise SystemExit(status if isinstance(status, int) else 0)


def _sentence(error: Exception) -> str:
    """The error's message on one line; the system's errors say which file they mean."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split())


def _fail(sentence: str, status: int) -> None:
    Console(stderr=True, highlight=False).print(f"[red]error:[/red] {sentence}", soft_wrap=True)
    raise SystemExit(status)
