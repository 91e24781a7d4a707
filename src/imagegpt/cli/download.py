"""`imagegpt download`: OpenAI's public checkpoints."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from imagegpt.cli import _checks, _console, _options, _progress
from imagegpt.common import ranges
from imagegpt.common.shell import command, free_name


def download(
    size: Annotated[
        Literal["s", "m", "l"], typer.Argument(help="76, 455 or 1,362 million parameters.", show_default=False)
    ],
    out: Annotated[Path, _options.path_option("The folder for the files.", show_default=False)],
    step: Annotated[
        int, _options.number(ranges.OPENAI_STEP, "Updates that were made: 131000, 262000, 524000 or 1000000.")
    ] = 1_000_000,
    bert: Annotated[bool, typer.Option("--bert", help="The bidirectional model.")] = False,
    base: Annotated[
        str | None, typer.Option(help="Where the files begin, for a mirror.", show_default="OpenAI's server")
    ] = None,
) -> None:
    """Fetch a checkpoint that OpenAI published, and its palette: resumed where it was cut, every checksum checked."""
    _checks.check_parent(out)
    from imagegpt.checkpoints.openai_download import BASE, STEPS, addresses, download, largest_bytes

    if step not in STEPS:
        raise ValueError(f"--step is {step}: there are {', '.join(map(str, STEPS))}")
    files = addresses(size, step, bert=bert, base=base or BASE)
    console = _console.stderr_console()
    columns = (_console.text_column("{task.fields[name]}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with (
        _progress.stopping(lambda: f"stopped: the same command goes on from what is in {out}"),
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
    ):
        task, names = bar.add_task("", total=None, name=""), list(files)

        def show(name: str, done: int, total: int) -> None:
            bar.update(task, name=f"{names.index(name) + 1}/{len(names)} {name}", completed=done, total=total)

        prefix = download(files, out, show, most_bytes=largest_bytes(size))
    _console.echo(f"{len(files)} files, all checksums right: {prefix}")
    objective = ["--objective", "bert"] if bert else []
    folder = free_name(f"igpt-{size}{'-bert' if bert else ''}")
    _console.say_next(command("convert", "openai", prefix, folder, *objective))
