import contextlib
import io
import json
import re
import shlex
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.imagegpt.modeling_imagegpt import ImageGPTForCausalImageModeling as Reference

from helpers import digit_ids
from imagegpt import ColorPalette, ImageGPTForCausalImageModeling, ImageGPTImageProcessor
from imagegpt.cli import main
from imagegpt.data.loading import open_data
from imagegpt.data.recipe import DataRecipe
from imagegpt.evaluation.likelihood import mean_nll
from imagegpt.files.locks import BusyError, folder_lock
from imagegpt.jobs.encode import encode
from imagegpt.training.trainer import Trainer

TINY = {
    "model.n_layer": 1,
    "model.n_embd": 8,
    "model.n_head": 1,
    "training.num_steps": 4,
    "training.warmup_steps": 1,
    "monitoring.validate_every": 2,
    "monitoring.checkpoint_every": 2,
    "monitoring.samples": 2,
}
MODEL = {"README.md", "config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json"}
RUN = MODEL | {"checkpoints", "curve.png", "data.json", "log.jsonl", "recipe.yaml", "samples"}


def changes(**more):
    """--set for a run of a moment; double underscores are dots."""
    settings = {**TINY, **{name.replace("__", "."): value for name, value in more.items()}}
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def listing(folder):
    return {path.name for path in folder.iterdir() if path.name != ".imagegpt.lock"}


def contents(folder):
    """Every path below a folder, with the bytes of the files."""
    return {path: path.is_symlink() or path.is_dir() or path.read_bytes() for path in folder.rglob("*")}


def one_line(text):
    return " ".join(text.split())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four steps, and what was said."""
    folder, out, err = tmp_path_factory.mktemp("train") / "model", io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main(["train", "digits", "--out", str(folder), *changes()])
    assert ended.value.code == 0, err.getvalue()
    return folder, out.getvalue(), err.getvalue()


def test_it_makes_a_folder_that_both_libraries_load(trained):
    folder = trained[0]
    assert listing(folder) == RUN
    assert listing(folder.parent) == {"model"}
    assert listing(folder / "samples") == {"step-00000002.png", "step-00000004.png"}
    assert listing(folder / "checkpoints") == {"step-00000002", "step-00000004"}
    assert len({(folder / name).stat().st_mode for name in MODEL}) == 1
    model = ImageGPTForCausalImageModeling.from_pretrained(folder)
    reference = Reference.from_pretrained(folder).eval()
    ids = digit_ids("test")[:2]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, reference(ids).logits, rtol=0, atol=1e-5)
    assert ImageGPTImageProcessor.from_pretrained(folder).palette == ColorPalette.grey(17)


def test_it_tells_the_likelihood_of_the_stored_weights(trained):
    folder, out, err = trained
    model = ImageGPTForCausalImageModeling.from_pretrained(folder)
    nats = f"{mean_nll(model, digit_ids('test')):.4f}"
    card = (folder / "README.md").read_text(encoding="utf-8")
    for text in (out, card):
        assert nats in text
        assert "1.5008" in text
        assert "1.6772" in text
    assert "`imagegpt train digits --out model --set model.n_layer=1 " in card
    assert "step 4/4: " in err
    assert "bits/pixel" in err
    assert "images/s" in err
    assert f"Next: imagegpt sample --model {folder}" in err


def test_the_log_and_the_pictures_are_of_this_run(trained):
    folder = trained[0]
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert ["validation" in line for line in lines] == [False, True, False, True]
    assert lines[0]["metrics"]["loss"] == pytest.approx(np.log(17), abs=1e-5)
    with Image.open(folder / "curve.png") as curve, Image.open(folder / "samples" / "step-00000004.png") as sheet:
        assert curve.width > 400
        assert sheet.width > sheet.height


def test_its_recipe_makes_the_same_model(trained, run, tmp_path):
    recipe = tmp_path / "again.yaml"
    recipe.write_text((trained[0] / "recipe.yaml").read_text())
    assert run("train", recipe, "--out", tmp_path / "m")[0] == 0
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == (trained[0] / "model.safetensors").read_bytes()


def test_the_same_command_again_trains_no_more(trained, run, monkeypatch):
    monkeypatch.setattr(Trainer, "_step", lambda *_: pytest.fail("it trained"))
    before = (trained[0] / "model.safetensors").read_bytes()
    code, out, err = run("train", "digits", "--out", trained[0], *changes())
    assert code == 0
    assert "resuming after step 4" in err
    assert out == trained[1]
    assert (trained[0] / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_names_the_command_to_go_on(trained, run, tmp_path, monkeypatch, number):
    step = Trainer._step

    def raising(self, parts):
        if self.state.step == 2:
            signal.raise_signal(number)
        return step(self, parts)

    out = tmp_path / "a model"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", raising)
        code, told, err = run("train", "digits", "--force", "--out", out, *changes())
    assert (code, told) == (0, "")
    assert "stopped after step 3" in err
    command = err.splitlines()[-1].partition("resume with: ")[2]
    assert command.startswith(f"imagegpt train digits --out '{out}' --set model.n_layer=1 ")
    assert "--force" not in command
    assert "README.md" not in listing(out)
    assert run(*shlex.split(command)[1:])[0] == 0
    assert (out / "model.safetensors").read_bytes() == (trained[0] / "model.safetensors").read_bytes()
    assert signal.getsignal(number) is not None
    assert "note" not in repr(signal.getsignal(number))


def test_what_a_killed_process_was_writing_is_cleared_away(trained, run, tmp_path):
    out = tmp_path / "m"
    assert run("train", "digits", "--out", out, *changes())[0] == 0
    (out / "log.jsonl").write_text((out / "log.jsonl").read_text() + '{"step": 3, "metr')
    (out / ".imagegpt.saving").mkdir()
    (out / ".imagegpt.saving" / "model.safetensors").write_text("half")
    (out / ".log.jsonl.0123abcd.tmp").write_text("half")
    (out / "checkpoints" / "step-00000004" / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"half")
    code, _, err = run("train", "digits", "--out", out, *changes())
    assert code == 0
    assert re.search(r"warning: the checkpoint .*step-00000004 is damaged \(shard-00001-.* was changed", err)
    assert "resuming after step 2" in err
    assert listing(out) == RUN
    assert [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    assert (out / "model.safetensors").read_bytes() == (trained[0] / "model.safetensors").read_bytes()


def test_force_begins_anew(run, tmp_path):
    out = tmp_path / "m"
    assert run("train", "digits", "--out", out, *changes())[0] == 0
    before = (out / "model.safetensors").read_bytes()
    code, _, err = run("train", "digits", "--out", out, "--force", *changes(training__seed=1))
    assert code == 0
    assert "resuming" not in err
    assert (out / "model.safetensors").read_bytes() != before


def test_force_leaves_what_no_run_wrote_and_says_so(run, tmp_path):
    proj = tmp_path / "proj"
    proj.mkdir()
    (proj / "cat.png").write_text("mine")
    recipe = proj / "recipe.yaml"
    recipe.write_text("model: {n_layer: 1, n_embd: 8, n_head: 1}\ndata: {train: digits}\ntraining: {num_steps: 200}\n")
    before = contents(proj)
    code, _, err = run("train", recipe, "--out", proj, "--force")
    assert (code, contents(proj)) == (2, before)
    assert "proj holds a recipe.yaml without the data.json of a training run: choose another path" in one_line(err)
    assert run("train", "digits", "--out", tmp_path / "m", *changes())[0] == 0
    (tmp_path / "m" / "cat.png").write_text("mine")
    code, _, err = run("train", "digits", "--out", tmp_path / "m", "--force", *changes())
    assert code == 0
    assert "m also holds cat.png, which no run wrote and which stays" in one_line(err)
    assert (tmp_path / "m" / "cat.png").read_text() == "mine"


def test_two_commands_do_not_train_in_one_folder(trained, run):
    before = contents(trained[0])
    with folder_lock(trained[0], "trains in"):
        code, _, err = run("train", "digits", "--out", trained[0], "--force", *changes())
    assert (code, contents(trained[0])) == (2, before)
    assert f"another process trains in {trained[0]}: wait for it, or end it first" in one_line(err)


def test_the_folder_is_locked_until_the_card_is_there(tmp_path, run, monkeypatch):
    """It was free while the model was scored: another command could begin anew below the card."""
    from imagegpt.training import api

    write_card, out, refused = api.write_card, tmp_path / "model", []

    def try_to_enter(*arguments):
        with pytest.raises(BusyError, match="another process trains in"), folder_lock(out, "trains in"):
            pass
        refused.append(True)
        return write_card(*arguments)

    monkeypatch.setattr(api, "write_card", try_to_enter)
    code, _, err = run("train", "digits", "--out", out, *changes())
    assert (code, refused) == (0, [True]), err
    with folder_lock(out, "trains in"):  # and free again
        assert (out / "README.md").is_file()


def test_a_mistake_with_force_costs_nothing(trained, run):
    before = contents(trained[0])
    assert run("train", "digits", "--out", trained[0], "--force", *changes(), "--set", "data.train=nowhere")[0] == 2
    assert contents(trained[0]) == before


@pytest.fixture
def no_training(monkeypatch):
    """What is refused must be refused before the slow work."""
    monkeypatch.setattr(Trainer, "_step", lambda *_: pytest.fail("it trained"))


def put_file(path):
    path.write_text("mine")


def put_folder_with_a_file(path):
    path.mkdir()
    (path / "thesis.txt").write_text("mine")


def put_damaged_run(path):
    path.mkdir()
    (path / "recipe.yaml").write_text("model: {n_layer: [")
    open_data(DataRecipe(train="digits")).record.write(path)


def put_classes(path):
    """Pictures in folders beside OUT, encoded without labels as "plain"."""
    np.save(path.parent / "plain.npy", np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8))
    encode(path.parent / "plain.npy", path.parent / "plain", ImageGPTImageProcessor(ColorPalette.grey(5), size=8))


SHAPELESS = {"model__n_layer": "null", "model__n_embd": "null", "model__n_head": "null"}


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("prepare", "words", "message"),
    [
        (put_file, [], "is a file: choose another path"),
        (put_folder_with_a_file, [], "exists and holds no training run: choose another path"),
        (put_folder_with_a_file, ["--force"], "exists and holds no training run: choose another path"),
        (put_damaged_run, [], "holds a run whose recipe.yaml is damaged"),
        (None, ["--width", 3], "--width"),
        (None, ["--device", "abacus"], "there is no device 'abacus': give cpu, cuda or cuda:1"),
        (None, ["--device", "meta"], "there is no device 'meta': give cpu, cuda or cuda:1"),
        (None, ["--device", "cuda:7"], "there is no device 'cuda:7' here: choose from cpu"),
        (None, ["--set", "training.steps=3"], "there is no training.steps in a recipe: training has num_steps,"),
        (None, ["--set", "steps=3"], "--set steps=3: steps is no key of a recipe"),
        (None, ["--set", "training.num_steps"], "--set training.num_steps is no change"),
        (None, changes(training__num_steps="0"), "training.num_steps is 0: it must be an integer from 1 to"),
        (None, changes(training__seed="-1"), "training.seed is -1: it must be"),
        (None, changes(training__warmup_steps="9"), "training.warmup_steps is 9 and training.num_steps 4"),
        (
            None,
            changes(training__micro_batch_size="5"),
            "training.batch_size is 32, which training.micro_batch_size = 5 does not",
        ),
        (
            None,
            changes(training__attention="flash_attention_2"),
            "training.attention is 'flash_attention_2', which ",
        ),
        (None, changes(model__n_head="3"), "model.n_embd is 8, which model.n_head = 3 does not divide"),
        (None, changes(model__pretrained="digits"), "model.pretrained and model.n_layer were both given"),
        (None, changes(**SHAPELESS, model__pretrained="nothing"), "nothing"),
        (
            None,
            changes(**SHAPELESS, model__pretrained="digits", objective__name="bert"),
            "the model digits is causal, and objective.name = 'bert' needs a bidirectional one",
        ),
        (
            put_classes,
            changes(**SHAPELESS, model__pretrained="digits", data__train="plain"),
            "the data plain has 5 colours, the model 17",
        ),
        (
            put_classes,
            changes(data__train="plain", objective__name="classification"),
            "objective.name is 'classification', and the images of data.train = plain have no labels",
        ),
        (None, changes(data__train="nowhere"), "data.palette is missing, and nowhere is not encoded"),
        (
            None,
            changes(data__train="nowhere", data__side="8", data__palette="digits"),
            "'nowhere' does not exist",
        ),
        (
            None,
            changes(data__augmentation="random-resized-crop"),
            "data.augmentation is 'random-resized-crop', which makes colours that the palette of data.train = digits",
        ),
        (
            None,
            changes(objective__mask_probability="0.5"),
            "there is no objective.mask_probability in a recipe: objective",
        ),
        (None, changes(monitoring__trackers="[notebook]"), "monitoring.trackers has 'notebook': choose among"),
        (
            None,
            changes(monitoring__trackers="[wandb]"),
            "monitoring.trackers has 'wandb', which is not installed: pip install",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence_and_leaves_no_trace(
    prepare, words, message, tmp_path, monkeypatch, run
):
    monkeypatch.chdir(tmp_path)
    if prepare:
        prepare(tmp_path / "m")
    before = contents(tmp_path)
    code, out, err = run("train", "digits", "--out", "m", *words)
    assert (code, out) == (2, "")
    assert message in one_line(err)
    assert len(re.findall("^error:", err, re.MULTILINE)) == 1
    assert "Traceback" not in err
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digist", "--out", "m"], "there is no recipe 'digist': choose one of "),
        (["my/recipe.yaml", "--out", "m"], "there is no recipe my/recipe.yaml: check the path"),
        (["digits"], "--out"),
        (["digits", "--out", "no/m"], "there is no folder no: create it first, or choose another path"),
        (["bad.yaml", "--out", "m"], "bad.yaml is no YAML ("),
        (["twice.yaml", "--out", "m"], "num_steps is given twice, in line 2"),
        (["empty.yaml", "--out", "m"], "empty.yaml holds no recipe: it must have the keys model, data"),
        (["folder.yaml", "--out", "m"], "there is no recipe folder.yaml: check the path"),
    ],
)
def test_recipes_that_are_none(words, message, tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text("model: {n_layer: 1")
    (tmp_path / "twice.yaml").write_text("training:\n  {num_steps: 1, num_steps: 2}\n")
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "folder.yaml").mkdir()
    before = contents(tmp_path)
    code, out, err = run("train", *words)
    assert (code, out) == (2, "")
    assert message in one_line(err)
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("no_training")
def test_a_place_that_cannot_be_written_to_is_refused(run):
    code, _, err = run("train", "digits", "--out", "/proc/m", *changes())
    assert code == 2
    assert "/proc/m" in err
    assert "Traceback" not in err


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"training__seed": 5}, "holds a run with training.seed = 0, now it is 5: choose another path, or start over"),
        ({"model__n_embd": 16}, "holds a run with model.n_embd = 8, now it is 16"),
        ({"monitoring__validation_images": 9}, "holds a run with monitoring.validation_images = None, now it is 9"),
        ({"data__split__seed": 5}, "holds a run with data.split.seed = 0, now it is 5"),
    ],
)
def test_another_recipe_is_refused_by_what_differs(trained, run, more, message):
    before = contents(trained[0])
    code, _, err = run("train", "digits", "--out", trained[0], *changes(**more))
    assert code == 2
    assert message in one_line(err)
    assert contents(trained[0]) == before


def test_a_rate_that_is_far_too_high_is_told_in_one_sentence(run, tmp_path):
    words = changes(training__learning_rate="1e30", training__max_grad_norm="1e30", training__num_steps="20")
    code, _, err = run("train", "digits", "--out", tmp_path / "m", *words)
    assert code == 2
    assert re.search(r"the loss of step \d+ is (nan|inf): lower training.learning_rate", one_line(err))
    assert "Traceback" not in err


def test_tensorboard_gets_the_numbers(run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "m"
    assert run("train", "digits", "--out", out, *changes(monitoring__trackers="[tensorboard]"))[0] == 0
    events = EventAccumulator(str(next((out / "tracking").rglob("events.*")).parent)).Reload()
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [point.step for point in events.Scalars("train/loss")] == [1, 2, 3, 4]
    told = [point.value for point in events.Scalars("validation/loss")]
    assert told == pytest.approx([line["validation"]["loss"] for line in logged if "validation" in line])


@pytest.mark.parametrize("objective", ["bert", "joint", "classification"])
def test_the_other_objectives(objective, run, tmp_path):
    out = tmp_path / "m"
    code, told, err = run("train", "digits", "--out", out, *changes(objective__name=objective))
    assert code == 0, err
    if objective == "bert":
        assert "this model" in told
        assert "neighbours" in told
    else:
        assert re.search(r"^accuracy on 360 images of digits: \d+\.\d% \(test split\)$", told.strip())
        assert (out / "confusion.png").is_file()
    assert f"Next: imagegpt info {out}" in err


def test_going_on_from_the_bundled_model(run, tmp_path):
    words = changes(**SHAPELESS, model__pretrained="digits", training__learning_rate="1e-6")
    code, _, err = run("train", "digits", "--out", tmp_path / "m", *words)
    assert code == 0, err
    logged = [json.loads(line) for line in (tmp_path / "m" / "log.jsonl").read_text().splitlines()]
    assert logged[-1]["validation"]["loss"] == pytest.approx(1.2527, abs=0.001)  # what the bundled model's card says


def test_encoded_pictures_are_trained_on(run, tmp_path, monkeypatch):
    """The way of a user's own pictures: encode, train with the recipe for them, sample."""
    monkeypatch.chdir(tmp_path)
    put_classes(tmp_path / "m")
    words = changes(
        data__train="plain", training__batch_size=4, data__augmentation="none", training__precision="float32"
    )
    assert run("train", "pictures", "--out", "m", *words)[0] == 0
    assert ImageGPTForCausalImageModeling.from_pretrained("m").config.vocab_size == 6
    assert run("sample", "--model", "./m", "--num", 1, "--out", "sample.png")[0] == 0
    assert "plain, 28 images to train, 2 to validate, 0 to test; see" in (tmp_path / "m" / "README.md").read_text()


def test_looking_for_a_learning_rate(run, tmp_path, monkeypatch):
    out = tmp_path / "rates"
    words = changes(training__learning_rate="0.5", training__num_steps="20")
    code, told, err = run("train", "digits", "--out", out, "--find-lr", "--find-lr-steps", 3, *words)
    assert code == 0, err
    assert listing(out) == {"data.json", "rates.json", "rates.png"}
    chosen = re.search(r"│ (\S+) +│ \d\.\d{4} +│ largest that does not hurt │", told)[1]
    assert f"Next: imagegpt train digits --out model {shlex.join(words)} --set training.learning_rate={chosen}" in err
    again = run("train", "digits", "--out", out, "--find-lr", "--find-lr-steps", 3, *words)
    assert again[1] == told
    assert "validation" not in again[2]  # nothing was tried again
    assert run("train", "digits", "--out", tmp_path / "m", "--find-lr-steps", 3)[0] == 2


def test_results_as_json(trained, run, tmp_path):
    code, out, err = run("train", "digits", "--out", trained[0], "--json", *changes())
    assert code == 0, err
    result = json.loads(out)
    assert (result["status"], result["steps"], result["split"]) == ("completed", 4, "test split")
    assert {score["name"]: f"{score['nats_per_pixel']:.4f}" for score in result["scores"]}["histogram"] == "1.6772"
    words = ["--find-lr", "--find-lr-steps", 2, *changes(training__num_steps="20"), "--json"]
    code, out, err = run("train", "digits", "--out", tmp_path / "rates", *words)
    assert code == 0, err
    found = json.loads(out)
    assert found["learning_rate"] in [trial["learning_rate"] for trial in found["trials"]]
    assert found["trials"][0].keys() == {"learning_rate", "validation_loss"}


def test_being_stopped_while_scoring(run, tmp_path, monkeypatch):
    out = tmp_path / "m"

    def terminated(*_, **__):
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr("imagegpt.training.objectives.autoregressive.score_split", terminated)
        code, _, err = run("train", "digits", "--out", out, *changes())
    assert code == 143
    assert f"stopped while scoring; the model is in {out}" in err
    assert not (out / "README.md").exists()
    assert run("train", "digits", "--out", out, *changes())[0] == 0
    assert (out / "README.md").is_file()
