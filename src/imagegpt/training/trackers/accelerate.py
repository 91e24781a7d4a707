"""The trackers of the library accelerate, by its names: tensorboard, wandb, mlflow, comet_ml and others."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class AccelerateTracker:
    """One of accelerate's trackers; arguments and methods are those of `Tracker`."""

    def __init__(self, name: str, folder: Path, settings: Mapping[str, int | float | str]) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        kind: Any = LOGGER_TYPE_TO_CLASS[name]
        options = {"logging_dir": str(folder / "tracking")} if kind.requires_logging_directory else {}
        self._tracker = kind(folder.name, **options)
        self._tracker.start()
        self._tracker.store_init_configuration(dict(settings))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the metrics of a step."""
        self._tracker.log(dict(metrics), step=step)

    def close(self) -> None:
        """Write what is buffered."""
        self._tracker.finish()


def check_tracker(name: str, *, also_known: Iterable[str] = ()) -> None:
    """Check that accelerate has a tracker, and that its library is installed.

    Args:
        name: of the tracker.
        also_known: names of other trackers, for the error message.
    Raises: ValueError if not.
    """
    try:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    except ImportError as error:
        raise ValueError("monitoring.trackers needs the library accelerate: pip install 'imagegpt[train]'") from error
    if name not in LOGGER_TYPE_TO_CLASS:
        known = [*also_known, *map(str, LOGGER_TYPE_TO_CLASS)]
        raise ValueError(f"monitoring.trackers has {name!r}: choose among {', '.join(known)}")
    if name not in map(str, get_available_trackers()):
        raise ValueError(f"monitoring.trackers has {name!r}, which is not installed: pip install {name}")
