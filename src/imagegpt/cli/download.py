"""`imagegpt download`: download OpenAI's public checkpoints."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from imagegpt.cli import _checks, _console, _options, _progress
from imagegpt.common import ranges
from imagegpt.common.shell import shell_command, unused_path


def download(
    size: Annotated[
        Literal["s", "m", "l"], typer.Argument(help="76, 455 or 1,362 million parameters.", show_default=False)
    ],
    out: Annotated[Path, _options.path_option("The folder for the files.", show_default=False)],
    step: Annotated[
        int, _options.number_option(ranges.OPENAI_STEP, "Training steps: 131000, 262000, 524000 or 1000000.")
    ] = 1_000_000,
    bert: Annotated[bool, typer.Option("--bert", help="The bidirectional model.")] = False,
    base: Annotated[
        str | None, typer.Option(help="The base URL, for a mirror.", show_default="OpenAI's server")
    ] = None,
    as_json: _options.JsonOption = False,
) -> None:
    """Download a checkpoint that OpenAI published, and its palette; resumes, and verifies every checksum."""
    _checks.check_parent_folder(out)
    from imagegpt.checkpoints.openai_download import (
        BASE_URL,
        STEPS,
        checkpoint_urls,
        download_checkpoint,
        max_checkpoint_bytes,
    )

    if step not in STEPS:
        raise ValueError(f"--step is {step}: there are {', '.join(map(str, STEPS))}")
    urls = checkpoint_urls(size, step, bert=bert, base=base or BASE_URL)
    console = _console.stderr_console()
    columns = (_console.text_column("{task.fields[name]}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with (
        _progress.on_interrupt(lambda: f"stopped: the same command resumes from the files in {out}"),
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
    ):
        task, names = bar.add_task("", total=None, name=""), list(urls)

        def update(name: str, received: int, total: int) -> None:
            bar.update(task, name=f"{names.index(name) + 1}/{len(names)} {name}", completed=received, total=total)

        prefix = download_checkpoint(urls, out, update, max_bytes=max_checkpoint_bytes(size))
    if as_json:
        num_bytes = sum((out / name).stat().st_size for name in urls)
        _console.print_json({"num_files": len(urls), "bytes": num_bytes, "path": str(prefix)})
    else:
        _console.echo(f"{len(urls)} files, all checksums correct: {prefix}")
    objective = ["--objective", "bert"] if bert else []
    folder = unused_path(f"igpt-{size}{'-bert' if bert else ''}")
    _console.suggest_command(shell_command("convert", "openai", prefix, folder, *objective))
