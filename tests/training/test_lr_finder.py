"""The search for the largest learning rate that does no harm."""

import json
import math
from dataclasses import replace

import pytest
import torch

from imagegpt.files.locks import folder_lock
from imagegpt.training.distributed import DistributedContext
from imagegpt.training.lr_finder import TOLERANCE, LearningRateSearch, largest_good_rate, next_rate
from imagegpt.training.recipe_files import find_recipe
from imagegpt.training.recipe_io import read_recipe
from stripes import hooks

TINY = ["model.n_layer=1", "model.n_embd=8", "model.n_head=1", "training.num_steps=30", "training.warmup_steps=10"]


@pytest.fixture
def recipe():
    return read_recipe(find_recipe("digits"), TINY)


def search(recipe, out, **options):
    return LearningRateSearch(recipe, out, DistributedContext(torch.device("cpu")), **options)


def searched(loss_of, first):
    """The rates that are tried if a rate leads to a loss."""
    losses = {}
    while (rate := next_rate(losses, first)) is not None:
        assert rate not in losses
        losses[rate] = loss_of(rate)
        assert len(losses) < 40
    return losses


@pytest.mark.parametrize("first", [2**-12, 2**-8, 2**-5, 1.0])
def test_the_search_ends_at_the_largest_rate_without_harm(first):
    """Best at 2^-8; up to 2^-7 it makes next to no difference, above that it does harm."""
    known = {2**-8: 2.0, 2**-7: 2.0 * (1 + TOLERANCE / 2)}

    def loss_of(rate):
        return known.get(rate, 2.0 + 0.1 * abs(math.log2(rate) + 8) if rate < 2**-4 else math.inf)

    losses = searched(loss_of, first)
    assert largest_good_rate(losses) == 2**-7
    assert {2**-8, 2**-7, 2**-6} <= losses.keys()


def test_where_all_diverge_it_goes_down():
    assert next_rate({1.0: math.inf}, 1.0) == 0.5
    assert next_rate({1.0: math.inf, 0.5: math.inf}, 1.0) == 0.25
    assert next_rate({1.0: math.inf, 0.5: 3.0}, 1.0) == 0.25
    assert next_rate({1.0: math.inf, 0.5: 3.0, 0.25: 3.1}, 1.0) is None


def test_trials_are_the_recipe_made_short(recipe, tmp_path):
    trial = search(recipe, tmp_path / "s", num_steps=6).recipe_for(0.5)
    assert trial.training.num_steps == trial.monitoring.validate_every == 6
    assert trial.training.warmup_steps == 2
    assert trial.training.learning_rate == 0.5
    assert (trial.model, trial.data, trial.objective) == (recipe.model, recipe.data, recipe.objective)
    assert search(recipe, tmp_path / "t").recipe_for(0.5).training.num_steps == 30


def test_a_search_is_gone_on_with(recipe, tmp_path):
    first = search(recipe, tmp_path / "s", num_steps=4)
    rate = first.next_rate()
    assert rate == recipe.training.learning_rate
    loss = first.try_rate(rate)
    assert not (tmp_path / "s" / "trial").exists()
    again = search(recipe, tmp_path / "s", num_steps=4)
    assert again.losses == {rate: loss}
    assert again.next_rate() == 2 * rate
    asked = iter([False, True])
    assert again.try_rate(2 * rate, hooks(should_stop=lambda: next(asked))) is None
    assert again.losses == {rate: loss}
    whole, parts = search(recipe, tmp_path / "t", num_steps=4), search(recipe, tmp_path / "s", num_steps=4)
    assert whole.try_rate(2 * rate) == parts.try_rate(2 * rate)


def test_a_rate_that_diverges_counts_as_such(recipe, tmp_path):
    wild = search(recipe, tmp_path / "s", num_steps=20)
    assert wild.try_rate(1e30) == math.inf
    assert search(recipe, tmp_path / "s", num_steps=20).losses == {1e30: math.inf}
    assert json.loads((tmp_path / "s" / "rates.json").read_text())["losses"] == {"1e+30": "inf"}


def test_what_stands_in_the_way(recipe, tmp_path):
    with pytest.raises(ValueError, match="a trial of 31 steps is longer than the run of 30"):
        search(recipe, tmp_path / "s", num_steps=31)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        search(recipe, tmp_path / "none" / "s")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        search(recipe, tmp_path / "file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("")
    with pytest.raises(FileExistsError, match="holds no search"):
        search(recipe, tmp_path / "mine")
    search(recipe, tmp_path / "s", num_steps=4)
    with pytest.raises(ValueError, match="the search of another recipe"):
        search(recipe, tmp_path / "s", num_steps=5)
    (tmp_path / "s" / "rates.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        search(recipe, tmp_path / "s", num_steps=4)
    assert search(recipe, tmp_path / "s", num_steps=4, force=True).losses == {}


def test_force_leaves_what_no_search_wrote(recipe, tmp_path):
    mine = tmp_path / "mine"
    (mine / "trial").mkdir(parents=True)
    for name in ("rates.json", "cat.png", "trial/README.md"):
        (mine / name).write_text("{}")
    with pytest.raises(FileExistsError, match="holds no search"):
        search(recipe, mine, num_steps=4, force=True)
    assert (mine / "rates.json").read_text() == "{}"
    first = search(recipe, tmp_path / "s", num_steps=4)
    assert first.try_rate(first.next_rate(), hooks(should_stop=lambda: True)) is None
    for name in ("cat.png", "trial/cat.png"):
        (tmp_path / "s" / name).write_text("{}")
    assert (tmp_path / "s/trial/recipe.yaml").is_file()
    again = search(recipe, tmp_path / "s", num_steps=4, force=True)
    assert again.losses == {}
    assert sorted(path.name for path in (tmp_path / "s").glob("[!.]*")) == [
        "cat.png",
        "data.json",
        "rates.json",
        "trial",
    ]
    assert [path.name for path in (tmp_path / "s/trial").iterdir()] == ["cat.png"]


def test_one_search_at_a_time(recipe, tmp_path):
    first = search(recipe, tmp_path / "s", num_steps=4)
    refused = pytest.raises(ValueError, match=r"another process looks for a learning rate in .*s: wait for it")
    with folder_lock(tmp_path / "s", "is busy in"), refused:
        first.try_rate(0.1)
    with folder_lock(tmp_path / "s", "is busy in"), refused:
        search(recipe, tmp_path / "s", num_steps=4, force=True)


def test_a_search_goes_on_however_it_is_executed(recipe, tmp_path):
    first = search(recipe, tmp_path / "s", num_steps=4)
    first.try_rate(0.1)
    others = replace(recipe, data=replace(recipe.data, num_workers=2))
    assert search(others, tmp_path / "s", num_steps=4).losses == first.losses


def test_there_may_be_no_answer(recipe, tmp_path):
    endless = search(recipe, tmp_path / "s", num_steps=4)
    endless.losses.update({recipe.training.learning_rate * 2**k: 5.0 - k for k in range(12)})
    with pytest.raises(ValueError, match=r"did not settle it, see .*: start from another"):
        endless.next_rate()
