import pytest
import torch
from transformers.models.imagegpt.modeling_imagegpt import ImageGPTForCausalImageModeling as Reference

from imagegpt import ColorPalette, ImageGPTForCausalImageModeling, ImageGPTImageProcessor
from imagegpt.cli import main
from imagegpt.evaluation.likelihood import mean_nll
from imagegpt.training import trainer
from imagegpt.training.data import load_digits

FILES = ["README.md", "config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json"]


def run(*words):
    """The exit code of `imagegpt train digits WORDS`."""
    with pytest.raises(SystemExit) as stop:
        main(["train", "digits", *map(str, words)])
    return stop.value.code


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model after three steps."""
    folder = tmp_path_factory.mktemp("train") / "model"
    assert run("--out", folder, "--steps", 3) == 0
    return folder


def test_it_makes_a_folder_that_both_libraries_load(trained):
    assert listing(trained) == FILES
    assert listing(trained.parent) == ["model"]
    assert len({path.stat().st_mode for path in trained.iterdir()}) == 1
    model = ImageGPTForCausalImageModeling.from_pretrained(trained)
    reference = Reference.from_pretrained(trained).eval()
    ids = load_digits().test.ids[:2]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, reference(ids).logits, rtol=0, atol=1e-5)
    assert ImageGPTImageProcessor.from_pretrained(trained).palette == ColorPalette.grey(17)


def test_it_prints_and_writes_the_likelihood_of_the_stored_weights(tmp_path, capsys):
    assert run("--out", tmp_path / "m", "--steps", 2, "--seed", 3) == 0
    told = capsys.readouterr()
    model = ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "m")
    nats = f"{mean_nll(model, load_digits().test.ids):.4f}"
    card = (tmp_path / "m" / "README.md").read_text(encoding="utf-8")
    for text in (told.out, card):
        assert nats in text
        assert "1.5008" in text
        assert "1.6772" in text
    assert "`imagegpt train digits --out m --steps 2 --seed 3`" in card
    assert "step 2/2" in told.err
    assert f"Next: imagegpt sample --model {tmp_path / 'm'}" in told.err


def test_the_seed_decides(trained, tmp_path):
    assert run("--out", tmp_path / "same", "--steps", 3, "--seed", 0) == 0
    assert run("--out", tmp_path / "other", "--steps", 3, "--seed", 1) == 0
    same, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("same", "other"))
    assert same == (trained / "model.safetensors").read_bytes() != other


def test_the_seed_decides_the_first_weights_too(tmp_path, monkeypatch):
    first = []

    def stop(model, *_, **__):
        first.append(model.transformer.wte.weight.detach().clone())
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "train", stop)
    for seed in (0, 0, 1):
        assert run("--out", tmp_path / "m", "--seed", seed) == 130
    assert first[0].equal(first[1])
    assert not first[0].equal(first[2])


def test_force_replaces_a_model(trained, tmp_path):
    folder = tmp_path / "m"
    assert run("--out", folder, "--steps", 1) == 0
    before = (folder / "model.safetensors").read_bytes()
    assert run("--out", folder, "--steps", 2, "--force") == 0
    assert (folder / "model.safetensors").read_bytes() != before
    assert listing(tmp_path) == ["m"]


@pytest.fixture
def no_training(monkeypatch):
    """What is refused must be refused before the slow work."""
    monkeypatch.setattr(trainer, "train", lambda *_, **__: pytest.fail("it trained"))


def contents(folder):
    """Every path below a folder, with the bytes of the files."""
    return {path: path.is_symlink() or path.is_dir() or path.read_bytes() for path in folder.rglob("*")}


def put_file(path):
    path.write_text("mine")


def put_folder(path):
    path.mkdir()


def put_folder_with_a_file(path):
    path.mkdir()
    (path / "thesis.txt").write_text("mine")


def put_link(path):
    path.symlink_to(path.parent / "nowhere")


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("prepare", "words", "message"),
    [
        (put_folder, [], "exists: choose another place, or replace it with --force"),
        (put_folder_with_a_file, ["--force"], "holds thesis.txt, which is no part of a model"),
        (put_file, [], "exists and is no folder: choose another place"),
        (put_file, ["--force"], "exists and is no folder: choose another place"),
        (put_link, ["--force"], "exists and is no folder: choose another place"),
        (None, ["--steps", 0], "num_steps is 0: it must be at least 1"),
        (None, ["--steps", "many"], "Invalid value for '--steps'"),
        (None, ["--seed", -1], "seed is -1: it must be at least 0"),
        (None, ["--width", 3], "--width"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence_and_leaves_no_trace(prepare, words, message, tmp_path, capsys):
    out = tmp_path / "m"
    if prepare:
        prepare(out)
    before = contents(tmp_path)
    assert run("--out", out, *words) == 2
    told = capsys.readouterr()
    assert message in " ".join(told.err.split())
    assert told.err.count("error:") == 1
    assert not told.out
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("no_training")
def test_a_missing_parent_is_refused(tmp_path, capsys):
    assert run("--out", tmp_path / "no" / "m") == 2
    assert f"there is no folder {tmp_path / 'no'}: make it" in " ".join(capsys.readouterr().err.split())
    assert not listing(tmp_path)


@pytest.mark.usefixtures("no_training")
def test_a_place_that_cannot_be_written_to_is_refused(capsys):
    assert run("--out", "/proc/m") == 2
    assert "nothing can be written to /proc" in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("no_training")
def test_out_is_needed(capsys):
    assert run() == 2
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 2)])
def test_a_run_that_breaks_off_leaves_nothing(error, code, tmp_path, capsys, monkeypatch):
    def stop(*_, **__):
        raise error

    monkeypatch.setattr(ImageGPTImageProcessor, "save_pretrained", stop)  # when half of the folder is written
    assert run("--out", tmp_path / "m", "--steps", 1) == code
    assert not listing(tmp_path)
    assert capsys.readouterr().err.count("error:") == 1


def test_a_run_that_breaks_off_leaves_the_old_model(tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("old")

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "train", stop)
    assert run("--out", tmp_path / "m", "--force") == 130
    assert listing(tmp_path) == ["m"]
    assert (tmp_path / "m" / "config.json").read_text() == "old"


def test_a_place_taken_meanwhile_is_not_overwritten(tmp_path, monkeypatch, capsys):
    original = trainer.train

    def slow(*args, **options):
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "mine.txt").write_text("mine")
        return original(*args, **options)

    monkeypatch.setattr(trainer, "train", slow)
    assert run("--out", tmp_path / "m", "--steps", 1) == 2
    assert listing(tmp_path) == ["m"]
    assert listing(tmp_path / "m") == ["mine.txt"]
