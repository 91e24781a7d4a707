"""The images of a run or of an evaluation, in parts; `datasets` opens them.

Axis letters: N images, T pixels in raster order.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from imagegpt.data.broken_images import BrokenImage
from imagegpt.data.identity import DataRecord
from imagegpt.images.palette import ColorPalette
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.training.dataloader import Images, Subset
from imagegpt.training.source_images import Rows


@dataclass(frozen=True, kw_only=True)
class Data:
    """All images of a run, in one palette and one size.

    Attributes:
        name: what the user calls them.
        parts: "train", what the weights are updated with; "validation", what every choice is made with; and perhaps
            "test", for the number in the end. For a model that is there any of them may be missing.
        everything: all images that were given, in several groups, not augmented.
        processor: makes ids of images and images of ids.
        classes: their names, if the images have labels.
        record: tells these data from others.
        is_own: whether the model in question was trained with them.
        subset: which images of validation are scored while training; None is all.
        untrained_classes: those without an image in the training part.
        broken: images that could not be read, and are in none of the parts.
        notes: sentences for the user.
    """

    name: str
    parts: Mapping[str, Images]
    everything: Sequence[Images]
    processor: ImageGPTImageProcessor
    classes: list[str] | None
    record: DataRecord
    is_own: bool
    subset: Rows | None = None
    untrained_classes: Sequence[str] = ()
    broken: Sequence[BrokenImage] = ()
    notes: Sequence[str] = ()

    @property
    def train(self) -> Images:
        """What the weights are updated with."""
        return self.parts["train"]

    @property
    def validation(self) -> Images:
        """What every choice is made with."""
        return self.parts["validation"]

    @property
    def watched(self) -> Images:
        """What of validation is scored while training."""
        return self.validation if self.subset is None else Subset(self.validation, self.subset)

    @property
    def test(self) -> Images | None:
        """What the number in the end is of, if there is any."""
        return self.parts.get("test")

    @property
    def palette(self) -> ColorPalette:
        """What the ids stand for."""
        assert self.processor.palette is not None, "it was checked when the data were opened"
        return self.processor.palette

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.processor.size["height"], self.processor.size["width"]

    @property
    def num_pixels(self) -> int:
        """T."""
        return math.prod(self.size)

    def choose_part(self, name: str | None = None) -> str:
        """The part to score: the one asked for, or else test, or else validation.

        Raises: ValueError if there is no such part.
        """
        held_out = [part for part in ("test", "validation") if part in self.parts]
        if name is None and held_out:
            return held_out[0]
        if name in self.parts:
            return str(name)
        missing = "held-out part" if name is None else f"{name} part"
        raise ValueError(
            f"{self.name} has no {missing} for this model, only {', '.join(self.parts) or 'none'}: choose another "
            "--part, or --all, which may score images that it was trained on"
        )

    def describe(self, part: str) -> str:
        """What a number is of, for a table's title."""
        words = f"{'training' if part == 'train' else part} part"
        return f"{words}; it also chose the checkpoint" if part == "validation" and self.is_own else words
