"""Sources from outside the package: registered at run time, or by an entry point of another package."""

from importlib.metadata import EntryPoint

import numpy as np
import pytest

from imagegpt.common import registry as common_registry
from imagegpt.data.loading import open_data
from imagegpt.data.recipe import DataRecipe
from imagegpt.data.sources.base import SOURCES, Example, ImageSource, SourceFormat
from imagegpt.data.sources.registry import FORMATS, list_splits, open_images, source_processor


class StripeSource(ImageSource):
    """Ten striped images."""

    name, classes = "stripes", ["narrow", "wide"]

    def __init__(self, split):
        self.split = split

    def __len__(self):
        return 10

    def _read(self, index):
        columns = np.arange(8) // (1 + index % 2) % 2 * 255 - index
        image = np.broadcast_to(columns.clip(0).astype(np.uint8), (8, 8))
        return Example(image=np.ascontiguousarray(image), label=index % 2, name=f"stripe {index}")

    def files(self):
        return ()

    @property
    def labels(self):
        return np.arange(10) % 2


class StripeFormat(SourceFormat):
    """Locations such as "stripes://8"."""

    description = "stripes://SIZE"

    def matches(self, location):
        return location.startswith("stripes://")

    def open(self, location, split):
        return StripeSource(split)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(SOURCES, "_registered", dict(SOURCES._registered))
    SOURCES.register("stripes")(StripeFormat)


@pytest.fixture
def installed(monkeypatch):
    """The format is an entry point of an installed package."""
    point = EntryPoint(name="stripes", value=f"{__name__}:StripeFormat", group="imagegpt.sources")
    monkeypatch.setattr(common_registry, "entry_points", lambda group: [point] if group == point.group else [])
    monkeypatch.setattr(EntryPoint, "load", lambda self: StripeFormat)


@pytest.mark.parametrize("way", ["registered", "installed"])
def test_a_source_of_another_package_is_opened_and_trained_on(way, request, tmp_path, palette):
    with pytest.raises(FileNotFoundError, match=r"'stripes://8' does not exist: check the path, or give digits; "):
        open_images("stripes://8")
    request.getfixturevalue(way)
    assert list_splits("stripes://8") == []
    assert source_processor("stripes://8") is None
    assert len(open_images("stripes://8")) == 10
    palette.save(tmp_path / "palette.npy")
    recipe = DataRecipe(train="stripes://8", palette=str(tmp_path / "palette.npy"), side=8, split={"validation": 0.3})
    data = open_data(recipe)
    assert (len(data.train) + len(data.validation), data.classes) == (10, ["narrow", "wide"])
    with pytest.raises(FileNotFoundError, match=r"stripes://SIZE"):  # the error names it among the kinds
        open_images("nothing-there")


def test_our_formats_are_tried_in_their_order_whatever_was_imported_first():
    assert list(FORMATS) == SOURCES.names()[: len(FORMATS)]
    assert list(FORMATS)[-1] == "hub"


def test_a_broken_package_is_named(installed, monkeypatch):
    def fail(self):
        raise ImportError("no module named zarr")

    monkeypatch.setattr(EntryPoint, "load", fail)
    with pytest.raises(
        ValueError, match=r"the data source 'stripes' of .* cannot be imported \(no module named zarr\)"
    ):
        open_images("stripes://8")
    assert len(open_images("digits", split="test")) == 360
