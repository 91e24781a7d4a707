"""Errors that can be found early are reported before torch and transformers are imported, which takes seconds."""

import json
import subprocess
import sys

import pytest

from imagegpt.cli._checks import check_source

RUNNING = """
import io, json, sys
from contextlib import redirect_stderr
from imagegpt.cli import main
results = []
for words in json.load(sys.stdin):
    err = io.StringIO()
    with redirect_stderr(err):
        try:
            main(words)
        except SystemExit as ended:
            status = ended.code
    heavy = sorted({"torch", "transformers", "sklearn", "datasets", "pyarrow", "matplotlib"} & set(sys.modules))
    results.append([status, err.getvalue(), heavy])
json.dump(results, sys.stdout)
"""

MISTAKES = [
    (["info", "nosuch"], "there is no model 'nosuch'"),
    (["info", "./nosuch"], "there is no folder ./nosuch"),
    (["info", "./empty"], "empty contains no config.json"),
    (["info", "digits", "--revision", "v1"], "revision 'v1' was given for 'digits'"),
    (["sample", "--model", "nosuch"], "there is no model 'nosuch'"),
    (["sample", "--model", "./empty", "--out", "many"], "empty contains no config.json"),
    (["sample", "--out", "no/many"], "there is no folder no"),
    (["sample", "--device", "meta"], "there is no device 'meta'"),
    (["sample", "--device", "mps"], "Apple's GPUs (mps) lack float64"),
    (["sample", "--max-memory", "inf"], "inf is not a number greater than 0"),
    (["complete", "no.png"], "there is no image no.png"),
    (["complete", "cat.png", "--model", "nosuch"], "there is no model 'nosuch'"),
    (["complete", "~nosuchuser/cat.png"], "~nosuchuser has no home folder"),
    (["fill", "cat.png", "--mask", "no.png"], "there is no image no.png"),
    (["fill", "cat.png", "--mask", "cat.png", "--model", "nosuch"], "there is no model 'nosuch'"),
    (["evaluate", "nosuch"], "there is no model 'nosuch'"),
    (["evaluate", "digits", "./nosuch"], "'./nosuch' does not exist"),
    (["bench", "nosuch"], "there is no model 'nosuch'"),
    (["palette", "fit", "./nosuch", "--out", "pal"], "'./nosuch' does not exist"),
    (["encode", "./nosuch", "ids", "--palette", "digits"], "'./nosuch' does not exist"),
    (["encode", "digits", "ids", "--palette", "nosuch"], "there is no palette 'nosuch'"),
    (["encode", "digits", "no/ids", "--palette", "digits"], "there is no folder no"),
    (["train", "nosuch", "--out", "model"], "there is no recipe 'nosuch'"),
    (["train", "nosuch.yaml", "--out", "model"], "there is no recipe nosuch.yaml"),
    (["train", "digits", "--out", "no/model"], "there is no folder no"),
    (["train", "digits", "--out", "model", "--find-lr-steps", "3"], "--find-lr-steps was given without --find-lr"),
    (["finetune", "nosuch", "digits", "--out", "model"], "there is no model 'nosuch'"),
    (["finetune", "digits", "./nosuch", "--out", "model"], "'./nosuch' does not exist"),
    (["finetune", "digits", "digits", "--out", "model", "--recipe", "nosuch"], "there is no recipe 'nosuch'"),
    (["finetune", "digits", "digits", "--out", "no/model"], "there is no folder no"),
    (["convert", "openai", ".", "x"], ". is a folder: give the prefix of the checkpoint's files"),
    (["convert", "openai", "nosuch", "x"], "there is no TensorFlow checkpoint nosuch: nosuch.index is missing"),
    (["convert", "transformers", "empty", "x"], "empty contains no config.json"),
    (["export", "openai", "digits", "."], ". is a folder: add a prefix for the files' names"),
    (["export", "openai", "nosuch", "x"], "there is no model 'nosuch'"),
    (["inspect", "nosuch"], "there is no model 'nosuch'"),
    (["inspect", ""], "it is empty: give a name or a path"),
    (["download", "s", "--out", "no/igpt"], "there is no folder no"),
]


def test_user_errors_are_reported_before_torch_is_imported(workplace):
    (workplace / "empty").mkdir()
    before = sorted(workplace.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", RUNNING],
        input=json.dumps([words for words, _ in MISTAKES]),
        capture_output=True, text=True, check=True, cwd=workplace,
    )  # fmt: skip
    for (words, message), (status, err, heavy) in zip(MISTAKES, json.loads(done.stdout), strict=True):
        context = f"{words}: {err}"
        assert status == 2, context
        assert err.startswith("error: "), context
        assert message in err, context
        assert err.count("\n") == 1, context
        assert heavy == [], context
    assert sorted(workplace.rglob("*")) == before


@pytest.mark.parametrize("name", ["./shards-{000..012}.tar", "/data/shards-*.tar", "hub:./photos?config=small"])
def test_patterns_and_options_are_left_to_the_source(name):
    check_source(name)
