"""Suggested commands, as parsed by shells and YAML; that they work is tested in cli/test_suggested_commands.py."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from imagegpt.common.shell import override, shell_command

NAMES = [
    "plain", "a b", "it's", "$HOME `id` \"x\"", "[x]", ":smile:", "-x", "čaj 茶", "a: b #1", "ends in \\",
    "a\nb", "\x1b[2J", "ol\udce9", "ol\udce912\\'", "wide\u3000space", "\u202egnp", "🍵",
]  # fmt: skip


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize("name", NAMES)
def test_a_shell_parses_the_command_back(name):
    line = shell_command("info", name, Path(name))
    assert line.isprintable()
    read = subprocess.run(["bash", "-c", line.replace("imagegpt info", r"printf '%s\0'", 1)], capture_output=True)
    assert read.stdout.split(b"\0")[:2] == [os.fsencode(name), os.fsencode(f"./{name}")]


@pytest.mark.parametrize("name", NAMES)
def test_yaml_parses_the_path_back(name):
    key, _, value = override("data.train", Path(name)).partition("=")
    assert (key, yaml.safe_load(value)) == ("data.train", f"./{name}")
