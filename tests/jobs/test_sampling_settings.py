"""Settings of sampling jobs, names of their files, and what a folder may contain."""

import dataclasses
import json

import pytest

from imagegpt.jobs.image_job import check_folder
from imagegpt.jobs.sampling_settings import (
    PromptSettings,
    SamplingSettings,
    differences,
    read_run,
    run_json,
    write_run,
)
from imagegpt.sampling import SamplingRules

SETTINGS = SamplingSettings(
    model="tiny",
    fingerprint="abc",
    precision="float32",
    seed=2**64 - 1,
    rules=SamplingRules(temperature=0.9, top_k=3, min_p=0.1),
    file_format="png",
    shard_size=4,
    batch_size=None,
    backend="cpp",
    num=23_456,
    version="0.1.0",
)


SHARDS = dataclasses.replace(SETTINGS, file_format="npz", num=10)


def test_settings_survive_the_manifest(tmp_path):
    prompts = PromptSettings(source="photos", source_fingerprint="12", num_images=5, num_kept=8, num_completions=2)
    for settings in (SETTINGS, dataclasses.replace(SETTINGS, prompts=prompts)):
        write_run(tmp_path, settings)
        assert read_run(tmp_path) == settings


def test_pngs_are_ten_thousand_a_folder_called_like_their_first_digits():
    names = [SETTINGS.files(range(index, index + 1))[0][0] for index in (0, 9_999, 10_000, 23_455)]
    assert names == ["0000/00000000.png", "0000/00009999.png", "0001/00010000.png", "0002/00023455.png"]
    assert [SETTINGS.first_image(name) for name in names] == [0, 9_999, 10_000, 23_455]


def test_shards_are_called_after_their_first_image():
    assert [SHARDS.files(items) for items in (range(4), range(4, 8), range(8, 10))] == [
        [("00000000.npz", range(4))],
        [("00000004.npz", range(4, 8))],
        [("00000008.npz", range(8, 10))],
    ]
    assert SHARDS.first_image("00000008.npz") == 8


@pytest.mark.parametrize(
    "name",
    ["0000/00023456.png", "0001/00000001.png", "00000001.png", "0000/1.png", "0000/00000001.npz", "0000", "run.json"],
)
def test_other_names_are_no_part_of_the_run(name):
    assert SETTINGS.first_image(name) is None


@pytest.mark.parametrize("name", ["00000001.npz", "00000012.npz", "00000004.png", "0000/00000004.npz", "0.npz"])
def test_other_names_are_no_shards(name):
    assert SHARDS.first_image(name) is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num": 23_457}, []),
        ({"seed": 1}, ["seed (18446744073709551615, not 1)"]),
        ({"fingerprint": "x"}, ["model (other weights, palette or configuration of tiny)"]),
        ({"fingerprint": "x", "model": "big"}, ["model (tiny, not big)"]),
        ({"fingerprint": "x", "precision": "float64"}, ["precision (float32, not float64)"]),
        ({"file_format": "npz", "shard_size": 8}, ["format (png, not npz)", "shard_size (4, not 8)"]),
        ({"batch_size": 8}, ["batch_size (None, not 8)"]),
        ({"rules": SamplingRules()}, ["temperature (0.9, not 1.0)", "top_k (3, not None)", "min_p (0.1, not None)"]),
        ({"num": 5}, ["num (23456, not 5: it may only grow)"]),
        ({"version": "0.2.0"}, ["version (0.1.0, not 0.2.0)"]),
        ({"backend": "torch"}, ["backend (cpp, not torch)"]),
    ],
)
def test_differences_are_named_with_both_values(changes, told):
    assert differences(SETTINGS, dataclasses.replace(SETTINGS, **changes)) == told


def damaged(**changes):
    return json.dumps({**json.loads(run_json(SETTINGS)), **changes})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"steps": 3}',
        damaged(kind="another"),
        damaged(rules={"heat": 1}),
        damaged(rules=None),
        damaged(seed="0"),
        damaged(num=0),
        damaged(batch_size=0),
        damaged(shard_size=0),
        damaged(file_format="jpg"),
        damaged(backend=None),
        damaged(more=1),
    ],
)
def test_a_manifest_that_is_not_ours_is_refused(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json was not written by imagegpt or is damaged.*choose another folder"):
        check_folder(tmp_path)


@pytest.mark.parametrize("has_run", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "0000/cat.png",
        "0001/00000001.png",
        "0000/x/y",
        "00000000.npz",
        ".DS_Store",
        "a/b",
        ".imagegpt/x",
        ".imagegpt/1.done",
    ],
)
def test_a_folder_with_anything_else_in_it_is_refused(tmp_path, has_run, name):
    if has_run:
        (tmp_path / "run.json").write_text(run_json(SETTINGS))
    (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / name).write_text("mine")
    foreign = {"0000/x/y": "0000/x", "a/b": "a"}.get(name, name)
    with pytest.raises(ValueError, match=f"holds {foreign}, which is no part of a run of images: move it away"):
        check_folder(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_images_without_a_manifest_are_not_ours(tmp_path):
    (tmp_path / "0000").mkdir()
    (tmp_path / "0000/00000000.png").write_text("mine")
    with pytest.raises(ValueError, match=r"holds 0000/00000000\.png, which is no part of a run"):
        check_folder(tmp_path)
