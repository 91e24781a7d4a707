import math

import numpy as np
import pytest
import torch

from helpers import digit_ids, tiny_model
from imagegpt import ColorPalette, ImageGPTConfig, ImageGPTForCausalImageModeling, ImageGPTImageProcessor
from imagegpt.checkpoints.loading import find_folder, load_model
from imagegpt.cli import main
from imagegpt.evaluation.likelihood import mean_nll
from imagegpt.jobs.encode import encode


def run(*words):
    """The exit code of `imagegpt WORDS`."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


def save(folder, palette, side=8):
    torch.manual_seed(0)
    config = ImageGPTConfig(
        vocab_size=palette.num_colors + 1, n_positions=side**2, n_embd=8, n_layer=1, n_head=1, init_scheme="openai"
    )
    model = ImageGPTForCausalImageModeling(config)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.save_pretrained(folder)
    ImageGPTImageProcessor(palette=palette, size=side).save_pretrained(folder)
    return folder


def rows(text):
    """name -> (nats, bits) of the printed table."""
    cells = [[cell.strip() for cell in line.split("│")[1:4]] for line in text.splitlines() if line.startswith("│")]
    return {name: (float(nats), float(bits)) for name, nats, bits in cells if nats}  # long names take several lines


def test_a_model_that_knows_nothing_scores_like_the_uniform_distribution(tmp_path, capsys):
    folder = save(tmp_path / "m", ColorPalette.grey(17))
    assert run("evaluate", folder) == 0
    out = capsys.readouterr().out
    assert "360 images of digits: test split" in out
    table = {name[:10]: numbers for name, numbers in rows(out).items()}
    assert table.pop(str(folder)[:10]) == table["uniform"] == (2.8332, 4.0875)
    assert table == {"neighbours": (1.5008, 2.1651), "histogram": (1.6772, 2.4197), "uniform": (2.8332, 4.0875)}


def test_the_bundled_model_is_best(capsys):
    assert run("evaluate") == 0
    table = rows(capsys.readouterr().out)
    assert list(table) == ["digits", "neighbours", "histogram", "uniform"]
    for nats, bits in table.values():
        assert bits == pytest.approx(nats / math.log(2), abs=1e-4)


def test_all_images_may_be_scored(tmp_path, capsys):
    assert run("evaluate", "digits", "--all") == 0
    out = capsys.readouterr().out
    assert "1,797 images of digits: all, including any that the model was trained on" in " ".join(out.split())
    table = rows(out)
    assert list(table) == ["digits", "uniform"]
    model = load_model(find_folder("digits"))
    ids = torch.cat([digit_ids(split) for split in ("train", "validation", "test")])
    assert table["digits"][0] == pytest.approx(mean_nll(model, ids), abs=6e-5)


def test_unknown_names(capsys):
    assert run("evaluate", "digist") == 2
    assert "digist" in capsys.readouterr().err
    assert run("evaluate", "digits", "mnist") == 2
    assert "'mnist' does not exist: check the path" in " ".join(capsys.readouterr().err.split())


def test_another_palette_is_refused(tmp_path, capsys):
    palette = ColorPalette.from_rgb([*range(16), 255])
    assert run("evaluate", save(tmp_path / "m", palette)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "has another palette than digits" in said
    assert said.count("error:") == 1


def test_another_size_is_refused(tmp_path, capsys):
    assert run("evaluate", save(tmp_path / "m", ColorPalette.grey(17), side=4)) == 2
    assert "makes images of 16 pixels, those of digits have 64" in " ".join(capsys.readouterr().err.split())


def test_a_bidirectional_model_is_refused(tmp_path, capsys):
    model = tiny_model(is_causal=False, vocab_size=18, n_positions=64)
    model.save_pretrained(tmp_path)
    ImageGPTImageProcessor(palette=ColorPalette.grey(17), size=8).save_pretrained(tmp_path)
    assert run("evaluate", tmp_path) == 2
    assert "only a causal model has an exact likelihood" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("device", ["abacus", "cuda:9"])
def test_a_device_that_is_not_there(capsys, device):
    assert run("evaluate", "digits", "digits", "--device", device) == 2
    assert device in capsys.readouterr().err


def test_a_users_own_pictures(tmp_path, capsys):
    """Encoded or not, with splits or without: the same images, the same numbers."""
    palette = ColorPalette.grey(17)
    folder = save(tmp_path / "m", palette)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    (tmp_path / "split").mkdir()
    for name, rows in (("train", slice(0, 40)), ("val", slice(40, 50)), ("test", slice(50, 60))):
        np.save(tmp_path / "split" / f"{name}.npy", pixels[rows])
    np.save(tmp_path / "whole.npy", pixels)
    processor = ImageGPTImageProcessor(palette=palette, size=8)
    told = {}
    for name in ("split", "whole.npy"):
        encode(tmp_path / name, tmp_path / f"{name}.encoded", processor)
        for place in (tmp_path / name, tmp_path / f"{name}.encoded"):
            assert run("evaluate", folder, place) == 0
            told[place.name] = " ".join(capsys.readouterr().out.split()).partition("predicted by")
    for place, title in (("split", "10 images of"), ("whole.npy", "2 images of")):
        assert told[place][0].startswith(title)
        assert told[f"{place}.encoded"][0].startswith(title)
        assert told[place][2] == told[f"{place}.encoded"][2]
        assert "2.8332" in told[place][2]
