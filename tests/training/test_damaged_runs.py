"""What a run reads of its own folder may be damaged, and its pictures may fail: one sentence, or a warning."""

import json
import time

import pytest
import torch

from imagegpt.data.identity import DataRecord
from imagegpt.training import run as run_module
from imagegpt.training import training_log
from imagegpt.training.checkpoint import _size_and_hash
from imagegpt.training.distributed import DistributedContext
from imagegpt.training.lr_finder import LearningRateSearch
from imagegpt.training.recipe_io import parse_recipe
from imagegpt.training.run import Run
from imagegpt.training.trainer_state import TrainerState
from imagegpt.training.training_log import TrainingLog, read_log

ALONE = DistributedContext(torch.device("cpu"))
DEEP = "[" * 100_000
LINES = [json.dumps({"step": step, "metrics": {"loss": 3.0 - step}}) for step in (1, 2)]


def recipe(**monitoring):
    return parse_recipe(
        {
            "model": {"n_layer": 1, "n_embd": 8, "n_head": 1},
            "data": {"train": "digits"},
            "training": {"num_steps": 2, "warmup_steps": 0, "batch_size": 4, "precision": "float32"},
            "monitoring": {"validate_every": 1, "checkpoint_every": 1, "samples": 0, "validation_images": 4}
            | monitoring,
        }
    )


def fail(*_, **__):
    raise RuntimeError("no fonts\nat all")


@pytest.mark.parametrize(
    ("module", "name", "told"),
    [
        (training_log, "loss_plot", "there is no picture of the losses"),
        (run_module, "sample_grid", "there is no sheet of samples"),
    ],
)
def test_a_failed_picture_does_not_end_the_run(tmp_path, monkeypatch, module, name, told):
    monkeypatch.setattr(module, name, fail)
    run = Run(recipe(samples=2), tmp_path / "m", ALONE)
    with pytest.warns(UserWarning, match=rf"^{told} \(no fonts at all\)$"):
        status = run.train()
    assert (status, run.step) == ("completed", 2)


def test_a_failed_picture_does_not_end_a_search(tmp_path, monkeypatch):
    monkeypatch.setattr("imagegpt.training.lr_finder.learning_rate_plot", fail)
    search = LearningRateSearch(recipe(), tmp_path / "s", ALONE)
    with pytest.warns(UserWarning, match="^there is no picture of the rates"):
        assert search.try_rate(0.01) is not None
    assert len(search.losses) == 1


@pytest.mark.parametrize(
    "line",
    ["{", DEEP, "[]", '{"step": 3}', '{"step": "x", "metrics": {"loss": 1}}', '{"step": 3, "metrics": {"loss": []}}',
     '{"step": 3, "metrics": {}}', '{"step": 3, "metrics": {"loss": 1}}', "\udcff"],
)  # fmt: skip
def test_a_damaged_line_of_a_log_is_left_out(tmp_path, line):
    log = tmp_path / "log.jsonl"
    log.write_bytes("\n".join([LINES[0], line, LINES[1], ""]).encode(errors="surrogateescape"))
    TrainingLog(log, 3).draw_curve(tmp_path / "a.png")
    log.write_text("\n".join(LINES))
    TrainingLog(log, 3).draw_curve(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_log_is_read_as_it_is_written(tmp_path):
    Run(recipe(), tmp_path / "m", ALONE).train()
    text = (tmp_path / "m" / "log.jsonl").read_text()
    lines = list(read_log(tmp_path / "m" / "log.jsonl"))
    assert "".join(line for line, _ in lines) == text
    assert [line.step for _, line in lines] == [1, 2]


STATES = {
    "no JSON": ("{", "is not JSON"),
    "deep": (DEEP, "is nested too deeply"),
    "no object": ("[]", "the content is []: it must be an object, in braces"),
    "nothing in it": ({"step": None}, "step is None: it must be a valid integer"),
    "a row in text": ({"recent_losses": "abc"}, "recent_losses is 'abc'"),
    "numbers in text": ({"best": {"loss": "low"}}, "best.loss is 'low': it must be a valid number"),
}


@pytest.mark.parametrize(("change", "told"), STATES.values(), ids=STATES)
def test_a_foreign_trainer_state_is_one_sentence(tmp_path, change, told):
    Run(recipe(), tmp_path / "m", ALONE).train()
    path = tmp_path / "m" / "checkpoints" / "step-00000002"
    content = json.loads((path / "trainer_state.json").read_text())
    (path / "trainer_state.json").write_text(change if isinstance(change, str) else json.dumps({**content, **change}))
    listed = json.loads((path / "manifest.json").read_text()) | {
        "trainer_state.json": _size_and_hash(path / "trainer_state.json")
    }
    (path / "manifest.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match=r"start over with --force$") as caught:
        Run(recipe(), tmp_path / "m", ALONE)
    assert told in str(caught.value)
    assert "step-00000002" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_trainer_state_without_a_field_is_one_sentence():
    with pytest.raises(ValueError, match=r"^the trainer state has no step: start over with --force$"):
        TrainerState.from_json({name: value for name, value in TrainerState().to_json().items() if name != "step"})


def test_a_deep_manifest_of_a_checkpoint_is_damage(tmp_path):
    Run(recipe(), tmp_path / "m", ALONE).train()
    (tmp_path / "m" / "checkpoints" / "step-00000002" / "manifest.json").write_text(DEEP)
    with pytest.warns(UserWarning, match=r"step-00000002 is damaged \(.*is nested too deeply\) and skipped"):
        assert Run(recipe(), tmp_path / "m", ALONE).step == 1


RATES = {
    "deep": (DEEP, "or is damaged: "),
    "words": ({"losses": {"fast": "1"}}, "losses.fast.[key] is 'fast': it must be a valid number"),
    "a list": ({"losses": [1]}, "losses is [1]: it must be an object, in braces"),
    "no recipe": ({"recipe": 3}, "recipe is 3: it must be text"),
}


@pytest.mark.parametrize(("change", "told"), RATES.values(), ids=RATES)
def test_damaged_rates_are_one_sentence(tmp_path, change, told):
    LearningRateSearch(recipe(), tmp_path / "s", ALONE)
    path = tmp_path / "s" / "rates.json"
    content = json.loads(path.read_text())
    path.write_text(change if isinstance(change, str) else json.dumps({**content, **change}))
    with pytest.raises(ValueError, match=r"choose another path, or start over with --force$") as caught:
        LearningRateSearch(recipe(), tmp_path / "s", ALONE)
    assert told in str(caught.value)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("record")
    Run(recipe(), folder / "m", ALONE)
    return json.loads((folder / "m" / "data.json").read_text())


RECORDS = {
    "seed": (("hash_split", "seed"), -1, "hash_split.seed is -1: it must be an integer from 0"),
    "share": (("hash_split", "test"), 2, "hash_split.test is 2: it must be a number of at least 0 and less than 1"),
    "colours": (("palette", "num_colors"), "x", "palette.num_colors is 'x': it must be an integer from 2"),
    "crop": (("preprocessing", "crop"), "zoom", "preprocessing.crop is none of none, center-crop"),
    "source": (("splits", "test", "source"), "moon", "splits.test.source is none of the sources"),
    "by": (("splits", "train", "by"), "luck", "splits.train.by is 'luck': it must be 'name' or 'hash'"),
    "count": (("sources", "train", "num_images"), [], "sources.train.num_images is []: it must be a valid integer"),
    "classes": (("classes",), "0123", "classes is '0123'"),
    "subset": (("validation_subset", "num_images"), 0, "validation_subset.num_images is 0: it must be an integer"),
}  # fmt: skip


@pytest.mark.parametrize(("keys", "value", "told"), RECORDS.values(), ids=RECORDS)
def test_a_record_that_cannot_be_is_one_sentence(tmp_path, record, keys, value, told):
    content = inner = json.loads(json.dumps(record))
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (tmp_path / "data.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"data\.json .*or move it away$") as caught:
        DataRecord.read(tmp_path)
    assert told in str(caught.value)


def test_a_deep_record_is_one_sentence_at_once(tmp_path):
    (tmp_path / "data.json").write_text('{"a":' * 1_000_000)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"data\.json was not written by imagegpt or is damaged: get it again"):
        DataRecord.read(tmp_path)
    assert time.perf_counter() - start < 5
