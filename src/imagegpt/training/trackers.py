"""Experiment trackers: where a run logs its metrics besides log.jsonl, by the names that recipes give them.

All trackers of the library accelerate are available by its names: tensorboard, wandb, mlflow, comet_ml and others. To
add one, write a subclass of `Tracker` decorated by `register_tracker`. Another package declares its class as an entry
point of the group `imagegpt.trackers` instead.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from imagegpt.common.registry import Registry

if TYPE_CHECKING:
    from imagegpt.training.recipe import Recipe
    from imagegpt.training.trainer import StepReport

Settings = Mapping[str, int | float | str]


class Tracker(ABC):
    """Logs the metrics of a run; one is created in the main process each time a run starts or resumes.

    Attributes:
        name: in recipes.
    """

    name: ClassVar[str]

    @abstractmethod
    def __init__(self, folder: Path, settings: Settings) -> None:
        """Start logging.

        Args:
            folder: of the run; files go into its subfolder `tracking`.
            settings: the fields of the recipe, such as "training.batch_size".
        """

    @classmethod  # noqa: B027 - optional
    def check(cls) -> None:
        """Check that the tracker can be used here, before a run starts.

        Raises: ValueError if not, for example because a library is missing.
        """

    @abstractmethod
    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the metrics of a step."""

    def close(self) -> None:  # noqa: B027 - optional
        """Write what is buffered."""


TRACKERS = Registry[type[Tracker]](kind="tracker", group="imagegpt.trackers")
register_tracker = TRACKERS.register_class


class Trackers:
    """The trackers of a run.

    Args:
        names: registered ones, or accelerate's.
        folder: of the run.
        recipe: logged as the run's settings.
    """

    def __init__(self, names: Sequence[str], folder: Path, recipe: "Recipe") -> None:
        fields = recipe.flatten()
        settings = {name: one if isinstance(one, int | float | str) else str(one) for name, one in fields.items()}
        self._trackers = [
            TRACKERS.get(name)(folder, settings)
            if name in TRACKERS.names()
            else _AccelerateTracker(name, folder, settings)
            for name in names
        ]

    def log(self, report: "StepReport") -> None:
        """Log the metrics of a step."""
        metrics = {f"train/{name}": value for name, value in report.metrics.items()}
        metrics |= {f"validation/{name}": value for name, value in (report.validation or {}).items()}
        metrics |= {"learning_rate": report.learning_rate, "grad_norm": report.grad_norm}
        for tracker in self._trackers:
            tracker.log(metrics, report.step)

    def close(self) -> None:
        """Write what is buffered; the trackers cannot be used afterwards."""
        for tracker in self._trackers:
            tracker.close()
        self._trackers = []


class _AccelerateTracker(Tracker):
    """One of accelerate's trackers, by its name."""

    def __init__(self, name: str, folder: Path, settings: Settings) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        kind: Any = LOGGER_TYPE_TO_CLASS[name]
        options = {"logging_dir": str(folder / "tracking")} if kind.requires_logging_directory else {}
        self._tracker = kind(folder.name, **options)
        self._tracker.start()
        self._tracker.store_init_configuration(dict(settings))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(metrics), step=step)

    def close(self) -> None:
        self._tracker.finish()


def check_trackers(names: Sequence[str]) -> None:
    """Check that trackers exist and can be used here.

    Raises: ValueError for an unknown name, or a missing library.
    """
    for name in names:
        if name in TRACKERS.names():
            TRACKERS.get(name).check()
        else:
            _check_accelerate(name)


def _check_accelerate(name: str) -> None:
    try:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    except ImportError as error:
        raise ValueError("monitoring.trackers needs the library accelerate: pip install 'imagegpt[train]'") from error
    if name not in LOGGER_TYPE_TO_CLASS:
        known = [*TRACKERS.names(), *map(str, LOGGER_TYPE_TO_CLASS)]
        raise ValueError(f"monitoring.trackers has {name!r}: choose among {', '.join(known)}")
    if name not in map(str, get_available_trackers()):
        raise ValueError(f"monitoring.trackers has {name!r}, which is not installed: pip install {name}")
