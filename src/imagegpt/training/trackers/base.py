"""What every tracker provides, the registry of trackers, and all trackers of a run together."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from imagegpt.common.registry import Registry
from imagegpt.training.trackers import accelerate

if TYPE_CHECKING:
    from imagegpt.training.recipe import Recipe
    from imagegpt.training.trainer import StepReport

Settings = Mapping[str, int | float | str]
TRACKERS = Registry[type["Tracker"]](kind="tracker", group="imagegpt.trackers")

TrackerClass = TypeVar("TrackerClass", bound=type["Tracker"])


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


def register_tracker(tracker: TrackerClass) -> TrackerClass:
    """Class decorator: make a tracker available to recipes under its `name`.

    Raises: ValueError if the name is taken.
    """
    TRACKERS.register(tracker.name)(tracker)
    return tracker


def check_trackers(names: Sequence[str]) -> None:
    """Check that trackers exist and can be used here.

    Raises: ValueError for an unknown name, or a missing library.
    """
    for name in names:
        if name in TRACKERS.names():
            TRACKERS.get(name).check()
        else:
            accelerate.check_tracker(name, also_known=TRACKERS.names())


class Trackers:
    """The trackers of a run.

    Args:
        names: registered ones, or accelerate's: tensorboard, wandb, mlflow and others.
        folder: of the run.
        recipe: logged as the run's settings.
    """

    def __init__(self, names: Sequence[str], folder: Path, recipe: "Recipe") -> None:
        settings = _flatten(recipe)
        self._trackers = [
            TRACKERS.get(name)(folder, settings)
            if name in TRACKERS.names()
            else accelerate.AccelerateTracker(name, folder, settings)
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


def _flatten(recipe: "Recipe") -> dict[str, int | float | str]:
    """The fields of a recipe by names such as "training.batch_size"; values that trackers cannot show become text."""
    return {
        f"{section}.{name}": value if isinstance(value, int | float | str) else str(value)
        for section, fields in recipe.to_dict().items()
        for name, value in fields.items()
    }
