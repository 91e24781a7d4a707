"""What a run shows while it lasts: samples, a picture of its losses, and numbers for trackers."""

import dataclasses
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from imagegpt.common import ranges
from imagegpt.common.number_fields import Within
from imagegpt.common.text import printable
from imagegpt.figures.grids import sample_grid
from imagegpt.figures.plots import loss_curve
from imagegpt.files.atomic import atomic_write
from imagegpt.files.schemas import parse_json, validate
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.sampling import Sampler, image_seed
from imagegpt.training.recipe import Recipe
from imagegpt.training.trainer import Step


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """What a line of a log says, as far as it is drawn.

    Attributes:
        step: steps done.
        metrics: of the batch.
        validation: of held-out images, if they were scored after this step.
    """

    step: Annotated[int, Within(ranges.STEPS)]
    metrics: dict[str, float]
    validation: dict[str, float] = field(default_factory=dict)


def draw_samples(
    model: ImageGPTForCausalImageModeling, processor: ImageGPTImageProcessor, num: int, path: Path
) -> None:
    """Draw the first images of seed 0 into a sheet.

    Args:
        model: is changed; nobody else may hold it.
        processor: makes images of ids.
        num: how many.
        path: of the PNG; its folder is made.
    """
    sampler = Sampler(model, in_place=True)
    ids = sampler.generate(None, seeds=[image_seed(0, index) for index in range(num)])
    path.parent.mkdir(exist_ok=True)
    content = io.BytesIO()
    sample_grid(processor.decode(ids)).save(content, format="PNG")
    atomic_write(path, content.getvalue(), "the samples")


def draw_curve(log: Path, path: Path) -> None:
    """Draw the losses in a log.

    Args:
        log: lines of JSON, as `Run` writes them.
        path: of the PNG.
    """
    # Steps that a spike undid are there twice: the later time counts.
    told = {line.step: line for _, line in read_log(log) if "total" in line.metrics}
    lines = [told[step] for step in sorted(told)]
    validation = [(line.step, line.validation["total"]) for line in lines if "total" in line.validation]
    image = loss_curve([(line.step, line.metrics["total"]) for line in lines], validation)
    atomic_write(path, image, "the curve")


def read_log(log: Path) -> Iterator[tuple[str, LogLine]]:
    """The lines of a log, as text and as what they say; those that are damaged are left out.

    A process that was killed may leave its last line incomplete.
    """
    with log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                yield line, validate(parse_json(line, str(log)), LogLine, str(log))
            except ValueError:
                continue


@contextmanager
def failing_quietly(what: str) -> Iterator[None]:
    """Make a failure a warning: a run is worth as much without its pictures.

    Args:
        what: is made meanwhile.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - libraries have errors of many kinds
        warnings.warn(f"there is no {what} ({printable(str(error)) or type(error).__name__})", stacklevel=3)


def check_trackers(names: Sequence[str]) -> None:
    """See that there are such trackers.

    Raises: ValueError for a name that is not known, or whose library is missing.
    """
    if not names:
        return
    try:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    except ImportError as error:
        raise ValueError("watch.trackers needs the library accelerate: pip install 'imagegpt[train]'") from error
    available = [str(name) for name in get_available_trackers()]
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(f"watch.trackers has {name!r}: choose among {', '.join(map(str, LOGGER_TYPE_TO_CLASS))}")
        if name not in available:
            raise ValueError(f"watch.trackers has {name!r}, which is not installed: pip install {name}")


class Trackers:
    """Where numbers go beside the log: accelerate's trackers, by name.

    Args:
        names: tensorboard, wandb, mlflow and others that accelerate knows.
        folder: of the run; trackers that write files write them into its `tracking`.
        recipe: told to them as the run's settings.
    """

    def __init__(self, names: Sequence[str], folder: Path, recipe: Recipe) -> None:
        self._trackers: list[Any] = []
        if not names:
            return
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        for name in names:
            kind = LOGGER_TYPE_TO_CLASS[name]
            where = {"logging_dir": str(folder / "tracking")} if kind.requires_logging_directory else {}
            tracker = kind(folder.name, **where)
            tracker.start()
            tracker.store_init_configuration(_flat(dataclasses.asdict(recipe)))
            self._trackers.append(tracker)

    def log(self, step: Step) -> None:
        """Tell the numbers of a step."""
        if not self._trackers:
            return
        values = {f"train/{name}": value for name, value in step.metrics.items()}
        values |= {f"validation/{name}": value for name, value in (step.validation or {}).items()}
        values |= {"learning_rate": step.learning_rate, "grad_norm": step.grad_norm}
        for tracker in self._trackers:
            tracker.log(values, step=step.step)

    def close(self) -> None:
        """Write what is not written yet."""
        for tracker in self._trackers:
            tracker.finish()
        self._trackers = []


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without sections; what trackers cannot show becomes text."""
    flat = {}
    for section, fields in settings.items():
        for name, value in fields.items():
            flat[f"{section}.{name}"] = value if isinstance(value, int | float | str) else str(value)
    return flat
