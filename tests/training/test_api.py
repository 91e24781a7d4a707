"""`imagegpt.train` and `imagegpt.finetune`, as a Python program calls them."""

import dataclasses
import json

import pytest

from imagegpt import ImageGPTForCausalImageModeling, ImageGPTForImageClassification
from imagegpt.training.api import finetune, load_recipe, train
from imagegpt.training.callbacks import TrainingCallback
from imagegpt.training.recipe_files import find_recipe

QUICK = ["training.num_steps=4", "training.warmup_steps=1", "training.batch_size=4"]
QUICK += ["monitoring.validate_every=2", "monitoring.checkpoint_every=2", "monitoring.validation_images=8"]
TINY = [*QUICK, "model.n_layer=1", "model.n_embd=8", "model.n_head=1", "monitoring.samples=0"]


class StopAfter(TrainingCallback):
    """Stops a run after a step, and remembers what it was told."""

    def __init__(self, step):
        self.last, self.steps, self.events = step, [], []

    def on_start(self, run):
        self.events.append(("start", run.step, run.resumed))

    def on_step(self, report):
        self.steps.append(report.step)

    def should_stop(self):
        return self.last in self.steps

    def on_training_end(self, status):
        self.events.append(("end", status))

    def on_evaluation(self, done, total):
        self.events.append(("evaluation", total))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api") / "m"
    return train("digits", folder, overrides=TINY)


def test_train_returns_what_it_found(trained):
    assert (trained.status, trained.steps, trained.is_main) == ("completed", 4, True)
    assert trained.best_step in (2, 4)
    assert {score.name for score in trained.scores} == {"this model", "neighbours", "histogram", "uniform"}
    assert (trained.split, trained.num_images, trained.accuracy) == ("test split", 360, None)
    assert trained.seconds > 0
    assert trained.next_command == f"imagegpt sample --model {trained.folder}"
    ImageGPTForCausalImageModeling.from_pretrained(trained.folder)
    assert f"imagegpt.train('digits', {str(trained.folder)!r})" in (trained.folder / "README.md").read_text()
    with pytest.raises(dataclasses.FrozenInstanceError):
        trained.steps = 5


def test_a_result_is_json(trained):
    fields = json.loads(json.dumps(trained.to_dict()))
    assert fields["scores"][0].keys() == {"name", "nats_per_pixel", "bits_per_pixel", "note"}
    assert fields["folder"] == str(trained.folder)
    assert fields["best_validation"]["loss"] == pytest.approx(trained.best_validation["loss"])


def test_a_completed_run_is_only_scored_again(trained):
    callback = StopAfter(None)
    again = train("digits", trained.folder, overrides=TINY, callback=callback)
    assert callback.steps == []
    assert callback.events[:2] == [("start", 4, True), ("end", "completed")]
    assert callback.events[-1] == ("evaluation", 360)
    assert [score.nats for score in again.scores] == [score.nats for score in trained.scores]


def test_a_callback_stops_a_run_and_the_same_call_resumes_it(tmp_path):
    stopped = train("digits", tmp_path / "m", overrides=TINY, callback=StopAfter(3))
    assert (stopped.status, stopped.steps, stopped.scores, stopped.split) == ("stopped", 3, (), None)
    callback = StopAfter(None)
    resumed = train("digits", tmp_path / "m", overrides=TINY, callback=callback)
    assert (resumed.status, resumed.steps, callback.steps) == ("completed", 4, [4])


def test_a_recipe_may_be_a_name_a_path_a_dictionary_or_a_recipe():
    by_name = load_recipe("digits", ["training.seed=3"])
    assert by_name == load_recipe(find_recipe("digits"), ["training.seed=3"])
    content = load_recipe("digits").to_dict()
    assert by_name == load_recipe(content, ["training.seed=3"])
    assert content["training"]["seed"] == 0
    assert load_recipe(by_name) is by_name
    with pytest.raises(ValueError, match=r"^overrides \(training\.seed=3\) were given with a Recipe: change the"):
        load_recipe(by_name, ["training.seed=3"])


def test_finetune_returns_an_accuracy(tmp_path):
    result = finetune("digits", "digits", tmp_path / "m", overrides=QUICK, lora_rank=1)
    assert result.status == "completed"
    assert 0 <= result.accuracy <= 1
    assert (result.scores, result.num_images) == ((), 360)
    assert result.next_command == f"imagegpt info {tmp_path / 'm'}"
    ImageGPTForImageClassification.from_pretrained(tmp_path / "m")


def test_averaged_weights_only_if_asked_for(tmp_path):
    for name, overrides in (("last", []), ("mean", ["training.ema_decay=0.9"])):
        train("digits", tmp_path / name, overrides=["training.ema_decay=null", *TINY, *overrides])
    shards = [next((tmp_path / name / "checkpoints/step-00000004").glob("*.safetensors")) for name in ("last", "mean")]
    assert b'"ema.' not in shards[0].read_bytes()
    assert b'"ema.' in shards[1].read_bytes()
    assert "exponential moving average (0.9 per step)" in (tmp_path / "mean" / "README.md").read_text()
    assert "moving average" not in (tmp_path / "last" / "README.md").read_text()
