"""Progress of long work, and the message when it is interrupted."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from imagegpt.cli._console import print_stderr, stderr_console, text_column

_LOG_INTERVAL_S = 60.0  # if stderr is not a terminal


@contextmanager
def pixel_progress(what: str, unit: str = "pixels") -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on stderr, removed when done; yield the function to call with (done, total)."""
    columns = (text_column(what), BarColumn(), MofNCompleteColumn(), text_column(unit))
    console = stderr_console()
    times = (TimeElapsedColumn(), text_column("left"), TimeRemainingColumn())
    with Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def image_progress(what: str, shown: bool = True) -> Iterator[Callable[[float, int], None]]:
    """Show a progress bar on stderr, or log a line per minute; yield the function to call with (images done, total)."""
    console = stderr_console()
    columns = (text_column(what), BarColumn(), text_column("{task.fields[status]}"))
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        first: tuple[float, float] | None = None
        task, next_log_at = bar.add_task(what, total=None, status=""), time.monotonic() + _LOG_INTERVAL_S

        def show(done: float, total: int) -> None:
            nonlocal first, next_log_at
            now = time.monotonic()
            if first is None:
                first = now, done
                if done:
                    print_stderr(f"resuming: {int(done):,} of {total:,} images are done")
            status = progress_text(done, total, done - first[1], now - first[0])
            bar.update(task, completed=done, total=total, status=status)
            if not console.is_terminal and now >= next_log_at:
                next_log_at = now + _LOG_INTERVAL_S
                print_stderr(f"{what}: {status}")

        yield show


def progress_text(done: float, total: int, done_now: float, elapsed_s: float) -> str:
    """Format images done, images per second and time left; the latter two once this process has done any."""
    text = f"{int(done):,} of {total:,} images"
    if done_now <= 0 or elapsed_s <= 0:
        return text
    rate = done_now / elapsed_s
    seconds = round((total - done) / rate)
    left = f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return f"{text}, {rate:,.0f} images/s, {left} left" if rate >= 10 else f"{text}, {rate:.2g} images/s, {left} left"


class _Terminated(BaseException):
    """SIGTERM was received: the machine is being preempted, or a launcher ends its processes."""


@contextmanager
def on_interrupt(message: Callable[[], str | None]) -> Iterator[None]:
    """Within the `with` block, exit with code 130 on Ctrl-C and 143 on SIGTERM, after printing a message.

    Args:
        message: called then; returns what to print, usually how to resume, or None for nothing.
    """

    def terminate(*_: object) -> None:
        raise _Terminated

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except (KeyboardInterrupt, _Terminated) as stop:
        text = message()
        if text is not None:
            print_stderr(text)
        raise SystemExit(130 if isinstance(stop, KeyboardInterrupt) else 143) from None
    finally:
        signal.signal(signal.SIGTERM, previous)
