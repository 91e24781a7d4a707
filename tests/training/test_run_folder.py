"""The folder of a run: what may start or be resumed in it, and that nothing of the user's in it is lost."""

import pytest
import torch

from imagegpt.files.locks import folder_lock
from imagegpt.training.distributed import DistributedContext
from imagegpt.training.optimizers import learning_rate
from imagegpt.training.recipe_io import parse_recipe
from imagegpt.training.run import Run
from imagegpt.training.run_folder import check_folder
from stripes import hooks

ALONE = DistributedContext(torch.device("cpu"))
OURS = {"config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json", "recipe.yaml"}
OURS |= {"data.json", "log.jsonl", "curve.png", "checkpoints", ".imagegpt.lock"}


def recipe(**changes):
    content = {
        "model": {"n_layer": 1, "n_embd": 8, "n_head": 1},
        "data": {"train": "digits"},
        "training": {"num_steps": 4, "warmup_steps": 1, "batch_size": 8, "precision": "float32"},
        "monitoring": {"validate_every": 2, "checkpoint_every": 2, "samples": 0, "validation_images": 8},
    }
    for section, fields in changes.items():
        content[section] = {**content.get(section, {}), **fields}
    return parse_recipe(content)


def trained(out, force=False, **changes):
    run = Run(recipe(**changes), out, ALONE, force=force)
    assert run.train() == "completed"
    return run


def put(folder, *names):
    """Files of the user's."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine: {name}")


def has_kept(folder, *names):
    return all((folder / name).read_text() == f"mine: {name}" for name in names)


MINE = ["photos/cat.png", "notes.txt", ".notes.tmp", ".saving.abc/x", "samples/mine.png", "checkpoints/notes", "a.tmp"]


def test_force_removes_only_what_a_run_wrote(tmp_path):
    out = tmp_path / "m"
    trained(out, monitoring={"samples": 2})
    put(out, *MINE)
    with pytest.warns(UserWarning, match=r"m also holds .notes.tmp, .saving.abc, a.tmp and 4 more, which no run wrote"):
        trained(out, force=True, training={"seed": 1, "num_steps": 2})
    assert has_kept(out, *MINE)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["notes", "step-00000002"]
    assert [path.name for path in (out / "samples").iterdir()] == ["mine.png"]
    assert {path.name for path in out.iterdir()} == OURS | {name.partition("/")[0] for name in MINE}
    assert len((out / "log.jsonl").read_text().splitlines()) == 2


def test_a_run_leaves_the_hidden_files_of_others(tmp_path):
    put(tmp_path, ".notes.tmp", ".saving.abc/x", ".a.0123abcd.tmp")
    trained(tmp_path, training={"num_steps": 2})
    (tmp_path / ".log.jsonl.0123abcd.tmp").write_text("half")
    (tmp_path / ".imagegpt.saving").mkdir()
    trained(tmp_path, training={"num_steps": 2})
    assert has_kept(tmp_path, ".notes.tmp", ".saving.abc/x", ".a.0123abcd.tmp")
    assert not (tmp_path / ".log.jsonl.0123abcd.tmp").exists()
    assert not (tmp_path / ".imagegpt.saving").exists()


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("data", [None, "{}", "[1]"])
def test_a_recipe_beside_photos_is_no_run(tmp_path, force, data):
    put(tmp_path, "cat.png", "README.md")
    (tmp_path / "recipe.yaml").write_text(recipe().to_yaml())
    if data is not None:
        (tmp_path / "data.json").write_text(data)
    told = "holds a recipe.yaml without the data.json" if data is None else "data.json was not written by imagegpt"
    with pytest.raises((FileExistsError, ValueError), match=told):
        Run(recipe(), tmp_path, ALONE, force=force)
    assert has_kept(tmp_path, "cat.png", "README.md")
    assert (tmp_path / "recipe.yaml").read_text() == recipe().to_yaml()


def test_a_link_to_a_folder_is_trained_in_and_stays(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    trained(tmp_path / "link")
    (tmp_path / "large").mkdir()
    (tmp_path / "disk/checkpoints").rename(tmp_path / "large/checkpoints")
    (tmp_path / "disk/checkpoints").symlink_to("../large/checkpoints")
    trained(tmp_path / "link", force=True, training={"seed": 1})
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk/checkpoints").is_symlink()
    assert len(list((tmp_path / "large/checkpoints").iterdir())) == 2
    (tmp_path / "nowhere").symlink_to("gone")
    with pytest.raises(FileNotFoundError, match="nowhere is a link to gone, which does not exist: make that folder"):
        check_folder(tmp_path / "nowhere", recipe())


@pytest.mark.parametrize("force", [True, False])
def test_one_run_at_a_time(tmp_path, force):
    first, second = (Run(recipe(), tmp_path / "m", ALONE) for _ in range(2))
    refused = r"^another process trains in .*m: wait for it, or end it first$"
    told = []

    def while_it_trains(_):
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "m").rglob("*")}
        with pytest.raises(ValueError, match=refused):
            Run(recipe(), tmp_path / "m", ALONE, force=force)
        with pytest.raises(ValueError, match=refused):
            second.train()
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "m").rglob("*")} == before
        told.append(_)

    first._callback.on_step = while_it_trains
    first.train()
    assert len(told) == 4
    Run(recipe(training={"seed": 1}), tmp_path / "m", ALONE, force=True)
    with pytest.raises(ValueError, match=r"another run was started in .*m meanwhile: choose another path"):
        second.train()


def test_a_run_that_cannot_start_lets_go(tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("no")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_prepare", fail)
        with pytest.raises(ValueError, match="no"):
            Run(recipe(), tmp_path / "m", ALONE)
    with folder_lock(tmp_path / "m", "trains in"):
        pass


EXECUTION = {
    "num_workers": {"data": {"num_workers": 3}},
    "micro_batch_size": {"training": {"micro_batch_size": 2}},
    "checkpointing": {"training": {"gradient_checkpointing": True}},
    "compile": {"training": {"compile": True}},
    "attention": {"training": {"attention": "eager"}},
    "samples": {"monitoring": {"samples": 3}},
    "keep": {"monitoring": {"keep_checkpoints": 5, "checkpoint_every": 3}},
    "spikes": {"monitoring": {"spike_nats": 2.0, "max_rollbacks": 9}},
    "patience": {"monitoring": {"patience": 3}},
    "card": {"card": {"title": "Digits", "license": "mit"}},
    "longer": {"training": {"num_steps": 5}},
}
DEFINITION = {
    "training.seed": {"training": {"seed": 1}},
    "training.batch_size": {"training": {"batch_size": 4}},
    "training.learning_rate": {"training": {"learning_rate": 0.1}},
    "training.num_steps": {"training": {"num_steps": 3}},  # shorter
    "model.n_embd": {"model": {"n_embd": 16}},
    "monitoring.validate_every": {"monitoring": {"validate_every": 1}},
    "data.augmentation": {"data": {"augmentation": "flip"}},
}


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "m"
    trained(out)
    return out


@pytest.mark.parametrize("changes", EXECUTION.values(), ids=EXECUTION)
def test_how_a_run_is_executed_may_change(there, changes):
    check_folder(there, recipe(**changes))


@pytest.mark.parametrize("name", DEFINITION)
def test_what_defines_a_run_may_not(there, name):
    with pytest.raises(ValueError, match=rf"holds a run with {name} = .*, now it is .*: choose another path, or start"):
        check_folder(there, recipe(**DEFINITION[name]))


def test_a_run_is_resumed_with_other_settings_to_the_same_model(tmp_path):
    trained(tmp_path / "whole", training={"num_steps": 8})
    asked = iter([False] * 3 + [True] * 9)
    Run(
        recipe(training={"num_steps": 8}), tmp_path / "m", ALONE, callback=hooks(should_stop=lambda: next(asked))
    ).train()
    resumed = trained(
        tmp_path / "m", training={"num_steps": 8, "gradient_checkpointing": True}, monitoring={"samples": 2}
    )
    assert resumed.resumed
    assert resumed.recipe.monitoring.samples == 2
    assert (tmp_path / "m/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert "samples: 2" in (tmp_path / "m/recipe.yaml").read_text()


def test_micro_batches_change_nothing_but_rounding(tmp_path):
    whole, parts = trained(tmp_path / "whole"), Run(recipe(training={"num_steps": 2}), tmp_path / "m", ALONE)
    parts.train()
    again = trained(tmp_path / "m", training={"micro_batch_size": 2})
    assert again.state.last["loss"] == pytest.approx(whole.state.last["loss"], abs=1e-3)


def test_an_extended_run_with_a_constant_rate_is_the_longer_run(tmp_path):
    """`trained` with 4 steps, and then with 8, ends in the bits of 8 steps at once."""
    schedule = {"schedule": "constant", "warmup_steps": 1}
    trained(tmp_path / "whole", training={"num_steps": 8, **schedule})
    trained(tmp_path / "m", training=schedule)
    assert trained(tmp_path / "m", training={"num_steps": 8, **schedule}).resumed
    assert (tmp_path / "m/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert len((tmp_path / "m/log.jsonl").read_text().splitlines()) == 8


def test_an_extended_run_takes_the_rates_of_the_longer_run(tmp_path):
    rates = []
    trained(tmp_path / "m")
    longer = recipe(training={"num_steps": 8})
    Run(
        longer, tmp_path / "m", ALONE, callback=hooks(on_step=lambda report: rates.append(report.learning_rate))
    ).train()
    assert rates == [learning_rate(step, longer.training) for step in range(4, 8)]
    with pytest.raises(ValueError, match=r"holds a run with training\.num_steps = 8, now it is 4"):
        check_folder(tmp_path / "m", recipe())


def test_a_run_from_a_pretrained_model_is_extended(tmp_path, there):
    model = {"pretrained": str(there), "n_layer": None, "n_embd": None, "n_head": None}
    trained(tmp_path / "m", model=model, objective={"name": "classification"})
    again = trained(tmp_path / "m", model=model, objective={"name": "classification"}, training={"num_steps": 6})
    assert again.resumed
    assert again.step == 6
