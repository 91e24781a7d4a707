"""The data of a training run or an evaluation: its train, validation and test split; `loading` opens them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from imagegpt.data.broken_images import BrokenImage
from imagegpt.data.datasets import Subset, TokenDataset
from imagegpt.data.identity import DataRecord
from imagegpt.images.palette import ColorPalette
from imagegpt.images.processor import ImageGPTImageProcessor


@dataclass(frozen=True, kw_only=True)
class DataSplits:
    """Data sets of one palette and one size; no image is in two of them.

    Attributes:
        name: as the user calls the data.
        splits: "train", "validation", which every choice is made with, and perhaps "test", for the reported score. Any
            of them may be missing when a trained model is evaluated.
        sources: the data sets that the splits were taken from, without augmentation.
        processor: from images to ids and back.
        classes: the names of the labels; None without labels.
        record: identifies these data.
        is_training_data: whether the model in question was trained on these data.
        validation_indices: the validation images that are scored during training; None for all.
        untrained_classes: classes without an image in the train split.
        broken: images that cannot be read; they are in none of the splits.
        notes: sentences for the user.
    """

    name: str
    splits: Mapping[str, TokenDataset]
    sources: Sequence[TokenDataset]
    processor: ImageGPTImageProcessor
    classes: list[str] | None
    record: DataRecord
    is_training_data: bool
    validation_indices: Int64[np.ndarray, " m"] | None = None
    untrained_classes: Sequence[str] = ()
    broken: Sequence[BrokenImage] = ()
    notes: Sequence[str] = ()

    @property
    def train(self) -> TokenDataset:
        """The images that the weights are trained on."""
        return self.splits["train"]

    @property
    def validation(self) -> TokenDataset:
        """The images that every choice is made with."""
        return self.splits["validation"]

    @property
    def monitored_validation(self) -> TokenDataset:
        """The validation images that are scored during training."""
        return self.validation if self.validation_indices is None else Subset(self.validation, self.validation_indices)

    @property
    def test(self) -> TokenDataset | None:
        """The images of the reported score, if there is a test split."""
        return self.splits.get("test")

    @property
    def palette(self) -> ColorPalette:
        """The colours that the ids refer to."""
        assert self.processor.palette is not None, "it was checked when the data were opened"
        return self.processor.palette

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.processor.size["height"], self.processor.size["width"]

    @property
    def num_pixels(self) -> int:
        """Pixels of an image."""
        return self.size[0] * self.size[1]

    def choose_split(self, name: str | None = None) -> str:
        """Return the split to score: `name`, or by default test, or else validation.

        Raises: ValueError if there is no such split.
        """
        held_out = [split for split in ("test", "validation") if split in self.splits]
        if name is None and held_out:
            return held_out[0]
        if name in self.splits:
            return str(name)
        missing = "held-out split" if name is None else f"{name} split"
        raise ValueError(
            f"{self.name} has no {missing} for this model, only {', '.join(self.splits) or 'none'}: choose another "
            "--split, or --all, which may score images that it was trained on"
        )

    def describe(self, split: str) -> str:
        """Describe a split for the title of a table."""
        chose = split == "validation" and self.is_training_data
        return f"{split} split; it also chose the checkpoint" if chose else f"{split} split"
