"""The section `data` of a recipe: which images to train on, and how they are split, augmented and loaded."""

from typing import Annotated, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from imagegpt.common import ranges
from imagegpt.common.pydantic_ranges import InRange
from imagegpt.data.broken_images import MAX_BROKEN

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

AugmentationName = Literal["none", "flip", "reflect-crop-flip", "random-resized-crop"]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SplitRecipe:
    """How to hold out images of a source that has no splits: by a hash of their pixels.

    Args:
        seed: of the hash; independent of `training.seed`.
        validation: the expected fraction of images held out for validation.
        test: the expected fraction held out for testing; 0 makes no test split.
    """

    seed: Annotated[int, InRange(ranges.TRAINING_SEED)] = 0
    validation: Annotated[float, InRange(ranges.OPEN_FRACTION)] = 0.04
    test: Annotated[float, InRange(ranges.FRACTION)] = 0.0

    def __post_init__(self) -> None:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"data.split.validation is {self.validation} and data.split.test {self.test}: together they must be "
                "less than 1"
            )


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DataRecipe:
    """The images of a training run.

    Args:
        train: "digits", a folder written by `imagegpt encode`, or any other source of images.
        validation: the same, for the validation images; None uses the source's own split or holds out some of `train`.
        test: the same, for the images of the reported score; None uses the source's own split, if it has one.
        split: how to hold out images.
        augmentation: applied to training images on the fly.
        palette: an .npy file, a folder or a model; for images that are not encoded yet.
        side: height and width in pixels; for images that are not encoded yet.
        max_broken: the largest fraction of a split's images that may be broken, if they are not encoded yet; broken
            images are skipped.
        num_workers: processes that load batches; 0 loads them in the training process.
    """

    train: str
    validation: str | None = None
    test: str | None = None
    split: SplitRecipe = SplitRecipe()
    augmentation: AugmentationName = "none"
    palette: str | None = None
    side: Annotated[int, InRange(ranges.IMAGE_SIDE)] | None = None
    max_broken: Annotated[float, InRange(ranges.BROKEN_FRACTION)] = MAX_BROKEN
    num_workers: Annotated[int, InRange(ranges.DATA_WORKERS)] = 0
