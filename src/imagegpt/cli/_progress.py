"""How long work tells how far it is, and what is said when it is stopped."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from imagegpt.cli._console import say, stderr_console, text_column

_LINE_EVERY_S = 60.0  # where stderr is no terminal


@contextmanager
def pixel_progress(what: str, unit: str = "pixels") -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, gone when done; gives the function to call with what is done and what there is."""
    columns = (text_column(what), BarColumn(), MofNCompleteColumn(), text_column(unit))
    console = stderr_console()
    times = (TimeElapsedColumn(), text_column("left"), TimeRemainingColumn())
    with Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def image_progress(what: str, shown: bool = True) -> Iterator[Callable[[float, int], None]]:
    """A bar on stderr, gone when done, or a line a minute; gives the function to call with images done and in all."""
    console = stderr_console()
    columns = (text_column(what), BarColumn(), text_column("{task.fields[told]}"))
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        first: tuple[float, float] | None = None
        task, line_at = bar.add_task(what, total=None, told=""), time.monotonic() + _LINE_EVERY_S

        def show(done: float, total: int) -> None:
            nonlocal first, line_at
            now = time.monotonic()
            if first is None:
                first = now, done
                if done:
                    say(f"going on: {int(done):,} of {total:,} images are there")
            told = progress_text(done, total, done - first[1], now - first[0])
            bar.update(task, completed=done, total=total, told=told)
            if not console.is_terminal and now >= line_at:
                line_at = now + _LINE_EVERY_S
                say(f"{what}: {told}")

        yield show


def progress_text(done: float, total: int, drawn: float, elapsed_s: float) -> str:
    """Images of all, images a second, time left; the latter two as soon as something has been drawn."""
    told = f"{int(done):,} of {total:,} images"
    if drawn <= 0 or elapsed_s <= 0:
        return told
    rate = drawn / elapsed_s
    seconds = round((total - done) / rate)
    left = f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return f"{told}, {rate:,.0f} images/s, {left} left" if rate >= 10 else f"{told}, {rate:.2g} images/s, {left} left"


class _Terminated(BaseException):
    """SIGTERM came: a machine is being taken away, or a launcher ends its processes."""


@contextmanager
def stopping(how_to_go_on: Callable[[], str | None]) -> Iterator[None]:
    """On Ctrl-C or SIGTERM say how to go on, and end with 130 or 143.

    Args:
        how_to_go_on: gives what is said then; None to say nothing.
    """

    def terminate(*_: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except (KeyboardInterrupt, _Terminated) as stop:
        told = how_to_go_on()
        if told is not None:
            say(told)
        raise SystemExit(130 if isinstance(stop, KeyboardInterrupt) else 143) from None
    finally:
        signal.signal(signal.SIGTERM, before)
