"""Paths, names and devices on the command line; numbers are tested in test_number_limits.py."""

import inspect
import typing
from pathlib import Path

import pytest
import typer

from imagegpt.cli._options import expand_home, read_device, read_path
from imagegpt.cli.app import app


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("text", "path"), [("~", ""), ("~/a/b.png", "a/b.png")])
def test_tilde_expands_to_the_home_folder(home, text, path):
    assert read_path(text) == home / path
    assert expand_home(text) == str(home / path)


@pytest.mark.parametrize("text", ["a~b", "./~", "a/~/b", "owner/model", "digits"])
def test_other_text_is_unchanged(home, text):
    assert expand_home(text) == text


def test_an_unknown_home_folder(home):
    with pytest.raises(typer.BadParameter, match="~nosuchuser has no home folder: give the full path instead"):
        read_path("~nosuchuser/x")
    (home / "~nosuchuser.png").touch()
    assert read_path("~nosuchuser.png") == Path("~nosuchuser.png")
    assert expand_home("~nosuchuser.png") == "./~nosuchuser.png"  # so that it is not expanded again


def test_an_empty_path_is_refused():
    with pytest.raises(typer.BadParameter, match="it is empty"):
        read_path("")


def callbacks(group, words=()):
    """The functions of all commands, by their words."""
    for one in group.registered_commands:
        yield " ".join([*words, one.name or one.callback.__name__]), one.callback
    for one in group.registered_groups:
        yield from callbacks(one.typer_instance, [*words, one.name])


COMMANDS = dict(callbacks(app))
NAMES = {"src", "data", "model", "palette", "recipe", "source"}  # of something, or paths


@pytest.mark.parametrize("command", COMMANDS)
def test_every_path_may_start_with_a_tilde(command):
    parameters = inspect.signature(COMMANDS[command]).parameters.values()
    for parameter in parameters:
        kind, info = typing.get_args(parameter.annotation)
        kinds = {kind, *typing.get_args(kind)}
        if Path in kinds:
            assert info.parser is read_path, parameter.name
        if parameter.name in NAMES:
            assert info.parser is expand_home, parameter.name


@pytest.mark.parametrize("text", ["cpu", "cuda", "cuda:3"])
def test_devices(text):
    assert read_device(text) == text


@pytest.mark.parametrize("text", ["meta", "xpu", "cuda:", "cuda:x", "gpu", "", "cpu:1"])
def test_unknown_devices_are_refused(text):
    with pytest.raises(typer.BadParameter, match=f"there is no device '{text}': give cpu, cuda or cuda:1"):
        read_device(text)


def test_apple_gpus_are_refused_with_the_reason():
    with pytest.raises(typer.BadParameter, match=r"Apple's GPUs \(mps\) lack float64"):
        read_device("mps")
