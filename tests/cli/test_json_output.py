"""`--json`: stdout holds one JSON object and nothing else, errors are as without it."""

import inspect
import json

import numpy as np
import pytest

from imagegpt import ColorPalette
from imagegpt.cli._options import JsonOption
from imagegpt.cli.app import app

TESTED_ELSEWHERE = {"bench", "download", "train", "finetune", "fill", "convert openai"}  # slow, or need special files
PRINTS_NO_NUMBERS = {"convert transformers"}
COMMANDS = {
    "complete": ["complete", "cat.png", "--model", "./tiny", "--num", 1],
    "sample": ["sample", "--model", "./tiny", "--num", 1],
    "info": ["info", "./tiny"],
    "models": ["models"],
    "encode": ["encode", "images.npy", "ids", "--palette", "grey.npy", "--size", 4],
    "evaluate": ["evaluate", "./tiny", "images.npy", "--all"],
    "palette fit": ["palette", "fit", "images.npy", "--out", "palette", "--colors", 4, "--size", 4],
    "export openai": ["export", "openai", "./tiny", "exported"],
    "inspect": ["inspect", "./tiny"],
    "env": ["env"],
    "cache": ["cache"],
}


def commands(group, words=()):
    """The functions of all commands, by their words."""
    for command in group.registered_commands:
        yield " ".join([*words, command.name or command.callback.__name__]), command.callback
    for subgroup in group.registered_groups:
        yield from commands(subgroup.typer_instance, [*words, subgroup.name])


def annotations(function):
    return [parameter.annotation for parameter in inspect.signature(function).parameters.values()]


@pytest.fixture
def images(workplace, monkeypatch):
    """Files for the commands, and a cache of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / ".cache"))
    np.save("images.npy", np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8))
    ColorPalette.grey(10).save("grey.npy")


def test_every_command_that_prints_numbers_has_the_option():
    functions = dict(commands(app))
    assert functions.keys() == COMMANDS.keys() | TESTED_ELSEWHERE | PRINTS_NO_NUMBERS
    without = {name for name, function in functions.items() if JsonOption not in annotations(function)}
    assert without == PRINTS_NO_NUMBERS


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize("command", COMMANDS)
def test_stdout_is_one_json_object(run, command):
    status, out, _ = run(*COMMANDS[command], "--json")
    assert status == 0
    result = json.loads(out)
    assert isinstance(result, dict)
    assert result
    assert [key for key in result if key != key.lower() or " " in key] == []


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("words", [["info", "nosuch"], ["sample", "--num", "0"], ["evaluate", "./tiny", "./nosuch"]])
def test_errors_are_as_without_it(run, words):
    expected = run(*words)
    assert run(*words, "--json") == expected
    assert expected[:2] == (2, "")
