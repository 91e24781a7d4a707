import json
import os
import pickle
import shutil
import warnings

import pytest
import torch

from imagegpt.training.checkpoint import CHECKPOINT_FORMAT, Checkpoints, damage_of, step_of
from imagegpt.training.ema import ExponentialMovingAverage
from imagegpt.training.optimizers import build_optimizers
from imagegpt.training.trainer_state import TrainerState
from stripes import ALONE, make_module, make_recipe, make_trainer, same_weights, stop_after, weights_of

RECIPE = make_recipe(monitoring={"checkpoint_every": 4})
SHARD = "shard-00001-model-00001-of-00001.safetensors"


class State:
    """What a checkpoint holds, after some updates."""

    def __init__(self, updates=2, recipe=RECIPE, **config):
        self.model = make_module(**config).model
        self.optimizers = build_optimizers(self.model, recipe.training)
        self.ema = ExponentialMovingAverage(self.model, 0.5)
        for step in range(updates):
            self.model(torch.arange(16)[None]).logits.square().sum().backward()
            for optimizer in self.optimizers:
                optimizer.step()
            self.ema.update(step)

    @property
    def all(self):
        return self.model, self.optimizers, self.ema.weights

    def moments(self):
        return [
            value for optimizer in self.optimizers for state in optimizer.state.values() for value in state.values()
        ]


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", ALONE, 2)


def names(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_what_was_saved_is_loaded(checkpoints):
    before, after = State(), State(updates=1)
    path = checkpoints.save(7, *before.all, {"step": 7, "note": "ä"})
    assert not same_weights(before.model, after.model)
    assert checkpoints.load(path, *after.all) == {"step": 7, "note": "ä"}
    assert same_weights(before.model, after.model)
    assert same_weights(before.ema.weights, after.ema.weights)
    assert len(before.moments()) == 3 * len(list(before.model.parameters()))
    assert all(a.equal(b) for a, b in zip(before.moments(), after.moments(), strict=True))


def test_the_state_of_muon_is_saved_and_loaded(checkpoints):
    recipe = make_recipe(training={"optimizer": "muon"})
    before, after = State(recipe=recipe), State(updates=1, recipe=recipe)
    num_weights, num_projections = len(list(before.model.parameters())), 8
    assert len(before.moments()) == 3 * (num_weights - num_projections) + num_projections
    checkpoints.load(checkpoints.save(7, *before.all, {}), *after.all)
    assert same_weights(before.model, after.model)
    assert all(a.equal(b) for a, b in zip(before.moments(), after.moments(), strict=True))


def test_saving_changes_nothing(checkpoints):
    state = State(updates=0)
    weights, moments = weights_of(state.model), [one.clone() for one in state.moments()]
    checkpoints.save(0, *state.all, {})
    assert same_weights(weights, state.model)
    assert all(a.equal(b) for a, b in zip(moments, state.moments(), strict=True))
    assert state.optimizers[0].param_groups[0]["lr"] == RECIPE.training.learning_rate


def test_the_newest_ones_are_kept(checkpoints):
    for step in (1, 5, 100_000_000, 9):
        checkpoints.save(step, *State(0).all, {})
        assert checkpoints.newest() == checkpoints.folder / f"step-{step:08d}"
    assert names(checkpoints) == ["step-00000005", "step-00000009"]  # and those of more steps are of another past
    assert step_of(checkpoints.newest()) == 9


def test_none(checkpoints):
    assert checkpoints.newest() is None
    checkpoints.folder.mkdir()
    assert checkpoints.newest() is None


def test_what_is_no_checkpoint_is_left_alone(checkpoints):
    path = checkpoints.save(3, *State(0).all, {})
    for name in ("step-9-backup", "notes", "step-x"):
        (checkpoints.folder / name).mkdir()
    assert checkpoints.newest() == path
    checkpoints.save(4, *State(0).all, {})
    assert {"step-9-backup", "notes", "step-x"} <= set(names(checkpoints))


def test_leftovers_of_a_killed_save_are_removed(checkpoints):
    checkpoints.save(3, *State(0).all, {})
    leftover = checkpoints.folder / ".step-00000005.making"
    shutil.copytree(checkpoints.folder / "step-00000003", leftover)
    assert step_of(checkpoints.newest()) == 3
    checkpoints.save(6, *State(0).all, {})
    assert names(checkpoints) == ["step-00000003", "step-00000006"]


def test_a_leftover_of_the_same_step_is_in_nobodys_way(checkpoints):
    leftover = checkpoints.folder / ".step-00000003.making"
    leftover.mkdir(parents=True)
    (leftover / SHARD).write_bytes(b"half")
    path = checkpoints.save(3, *State(0).all, {})
    assert damage_of(path) is None
    assert names(checkpoints) == ["step-00000003"]


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def drop(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [cut, flip, drop, empty])
@pytest.mark.parametrize("name", [SHARD, "trainer_state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_passed_over(checkpoints, harm, name):
    older = checkpoints.save(3, *State(0).all, {"step": 3})
    newer = checkpoints.save(6, *State(0).all, {"step": 6})
    if (harm, name) == (flip, "manifest.json"):  # a flipped bit may be harmless in JSON: not in a hash
        text = (newer / name).read_text()
        (newer / name).write_text(text.replace('"', "'", 1))
    else:
        harm(newer / name)
    with pytest.warns(UserWarning, match=rf"the checkpoint .*step-00000006 is damaged \(.*{name[:5]}.*skipped"):
        assert checkpoints.newest() == older


@pytest.mark.parametrize("manifest", ["{}", "[]", "3", f'{{"{SHARD}": 3}}', '{"trainer_state.json": [1, "x"]}'])
def test_a_manifest_that_lists_too_little_is_damage(checkpoints, manifest):
    path = checkpoints.save(3, *State(0).all, {})
    (path / "manifest.json").write_text(manifest)
    assert damage_of(path) is not None


def test_all_damaged(checkpoints):
    for step in (3, 6):
        cut(checkpoints.save(step, *State(0).all, {}) / SHARD)
    with pytest.warns(UserWarning, match="damaged"):
        assert checkpoints.newest() is None


@pytest.mark.parametrize("config", [{"n_embd": 16}, {"n_layer": 3}])
def test_a_checkpoint_of_another_model_is_refused(checkpoints, config):
    path = checkpoints.save(3, *State(0).all, {})
    with pytest.raises(ValueError, match=r"step-00000003 is no checkpoint of this model: start over with --force"):
        checkpoints.load(path, *State(0, **config).all)


def test_a_run_with_a_damaged_checkpoint_ends_in_the_same_bits(tmp_path):
    whole = make_module()
    make_trainer(RECIPE, module=whole).train()
    make_trainer(RECIPE, folder=tmp_path, **stop_after(10)).train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000008", "step-00000010"]
    cut(tmp_path / "step-00000010" / SHARD)
    module = make_module()
    trainer = make_trainer(RECIPE, module=module, folder=tmp_path)
    with pytest.warns(UserWarning, match="step-00000010 is damaged"):
        assert trainer.resume()
    assert trainer.state.step == 8
    trainer.train()
    assert same_weights(whole.model, module.model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert step_of(Checkpoints(tmp_path, ALONE, 2).newest()) == 12


def test_a_disk_that_is_full_is_told_in_one_sentence(checkpoints, monkeypatch):
    older = checkpoints.save(3, *State(0).all, {})

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed.checkpoint.filesystem.FileSystem, "create_stream", full)
        message = r"the checkpoint cannot be written to .*checkpoints \(.*No space left on device.*\): make room"
        with pytest.raises(OSError, match=message) as caught:
            checkpoints.save(6, *State(0).all, {})
    assert "\n" not in str(caught.value)
    assert checkpoints.newest() == older
    checkpoints.save(7, *State(0).all, {})
    assert names(checkpoints) == ["step-00000003", "step-00000007"]


def test_the_manifest_describes_every_file(checkpoints):
    path = checkpoints.save(3, *State(0).all, TrainerState(step=3).to_json())
    listed = json.loads((path / "manifest.json").read_text())
    assert set(listed) == {file.name for file in path.iterdir()} - {"manifest.json"}
    assert listed["trainer_state.json"][0] == (path / "trainer_state.json").stat().st_size


def test_a_checkpoint_of_many_files_is_loaded(checkpoints, monkeypatch):
    monkeypatch.setattr("imagegpt.training.checkpoint._FILE_BYTES", 10_000)
    before, after = State(), State(updates=1)
    path = checkpoints.save(7, *before.all, {})
    assert len(list(path.glob("shard-00001-*.safetensors"))) > 5
    checkpoints.load(path, *after.all)
    assert same_weights(before.model, after.model)
    assert all(a.equal(b) for a, b in zip(before.moments(), after.moments(), strict=True))


def test_the_recipe_decides_the_settings_of_an_optimizer(checkpoints):
    """A checkpoint has the moments only: settings were restored from it, whatever the recipe said."""
    before, after = State(), State(recipe=make_recipe(training={"weight_decay": 0.3, "beta2": 0.5}))
    checkpoints.load(checkpoints.save(7, *before.all, {}), *after.all)
    assert [group["weight_decay"] for group in after.optimizers[0].param_groups] == [0.3, 0.0]
    assert after.optimizers[0].param_groups[0]["betas"][1] == 0.5


class Trap:
    """What an attacker would put into a pickle."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("format_version", [1, CHECKPOINT_FORMAT])
def test_a_pickle_in_a_checkpoint_is_never_read(checkpoints, tmp_path, format_version):
    """Checkpoints of format 1 had one, and a foreign run folder ran what it said when it was resumed."""
    path = checkpoints.save(3, *State().all, {})
    content = json.loads((path / "trainer_state.json").read_text())
    (path / "trainer_state.json").write_text(json.dumps({**content, "format_version": format_version}))
    (path / ".metadata").write_bytes(pickle.dumps(Trap(tmp_path / "trapped")))
    if format_version == CHECKPOINT_FORMAT:
        assert checkpoints.load(path, *State().all) == {}
    else:
        message = r"has format version 1, this imagegpt reads 3: start over with --force"
        with pytest.raises(ValueError, match=message):
            checkpoints.load(path, *State().all)
    assert not (tmp_path / "trapped").exists()


def test_a_file_that_is_not_in_the_manifest_is_damage(checkpoints):
    path = checkpoints.save(3, *State(0).all, {})
    shutil.copy(path / SHARD, path / SHARD.replace("00001-model", "00002-model"))
    assert damage_of(path) == "manifest.json does not list shard-00002-model-00001-of-00001.safetensors"


def test_a_manifest_leads_nowhere_else(checkpoints):
    """It listed ../../../dev/zero, which has no end."""
    path = checkpoints.save(3, *State(0).all, {})
    listed = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**listed, "../../../../../../../../dev/zero": [1, "x"]}))
    assert damage_of(path) == "../../../../../../../../dev/zero is missing"


def test_a_state_that_was_loaded_is_saved_in_the_same_order(checkpoints):
    """The tensors came in another one, so that nobody could compare the checkpoints of two runs by their bytes."""
    before, after = State(), State(updates=1)
    first = checkpoints.save(7, *before.all, {})
    checkpoints.load(first, *after.all)
    second = checkpoints.save(8, *after.all, {})
    one, other = ((path / SHARD).read_bytes() for path in (first, second))
    end = 8 + int.from_bytes(one[:8], "little")
    assert json.loads(one[8:end]) == json.loads(other[8:end])
    assert one[end:] == other[end:]


def test_what_a_killed_process_left_of_an_old_one_goes(checkpoints):
    """It stayed for ever if it was left by the last checkpoint of a run."""
    for step in (1, 2):
        checkpoints.save(step, *State(0).all, {})
    half = checkpoints.folder / "step-00000000"
    half.mkdir()
    (half / "manifest.json").touch()
    (checkpoints.folder / "step-00000003").mkdir()  # of more steps: it may be a disk that could not be read for once
    checkpoints.remove_old(2)
    assert names(checkpoints) == ["step-00000001", "step-00000002", "step-00000003"]
