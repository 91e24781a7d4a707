"""Registries: our own implementations by decorator, those of other packages by entry point."""

import sys
from pathlib import Path

import pytest

from imagegpt.common.registry import Registry

GROUP = "imagegpt.test_shapes"


@pytest.fixture
def shapes():
    registry = Registry[type](kind="shape", group=GROUP)
    registry.register("square")(int)
    return registry


@pytest.fixture
def installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another package with two entry points: `circle`, and `broken`, whose module fails to import."""
    info = tmp_path / "their_shapes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-shapes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{GROUP}]\n"
        "circle = their_shapes:Circle\n"
        "broken = their_broken_shapes:Triangle\n"
        "square = their_shapes:Circle\n"
    )
    (tmp_path / "their_shapes.py").write_text("class Circle: ...\n")
    (tmp_path / "their_broken_shapes.py").write_text("raise RuntimeError('needs\\n libgeometry 3')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("their_shapes", None)


def test_register_returns_the_class_unchanged(shapes):
    class Star: ...

    assert shapes.register("star")(Star) is Star
    assert shapes.get("star") is Star
    assert shapes.names() == ["square", "star"]


def test_an_unknown_name_lists_the_known_ones(shapes):
    shapes.register("star")(str)
    with pytest.raises(ValueError, match=r"^there is no shape 'cube': choose one of square, star$"):
        shapes.get("cube")


def test_a_name_is_registered_only_once(shapes):
    with pytest.raises(ValueError, match=r"^there is already a shape named 'square': choose another name$"):
        shapes.register("square")(str)


@pytest.mark.usefixtures("installed_package")
def test_entry_points_of_other_packages_are_found(shapes):
    assert shapes.names() == ["square", "broken", "circle"]
    assert shapes.get("circle").__name__ == "Circle"


@pytest.mark.usefixtures("installed_package")
def test_a_registered_name_takes_precedence_over_an_entry_point(shapes):
    assert shapes.get("square") is int


@pytest.mark.usefixtures("installed_package")
def test_an_entry_point_that_fails_to_import_is_one_sentence(shapes):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared as a whole
        shapes.get("broken")
    assert str(caught.value) == (
        "the shape 'broken' of their-shapes cannot be imported (needs libgeometry 3): repair or uninstall their-shapes"
    )
