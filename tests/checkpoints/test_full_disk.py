"""Saving to a full disk, simulated by a limit on file size."""

import contextlib
import resource

import pytest

from helpers import tiny_model
from imagegpt import ColorPalette, ImageGPTImageProcessor, ImageGPTPipeline
from imagegpt.checkpoints.saving import save_folder
from imagegpt.cli import main
from imagegpt.training.factory import save_model

PROCESSOR = ImageGPTImageProcessor(ColorPalette.grey(16), size=4)
TOLD = r"the model cannot be written \(.*File too large.*\): free some space, or choose another path"


@contextlib.contextmanager
def small_files():
    """Limit files to 20,000 bytes: more than all files of the tiny model except its weights."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_full_disk_is_an_oserror(tmp_path):
    with small_files(), pytest.raises(OSError, match=TOLD):
        save_folder(tiny_model(), PROCESSOR, tmp_path / "m")
    pipe = ImageGPTPipeline(tiny_model(), PROCESSOR)
    with small_files(), pytest.raises(OSError, match=TOLD):
        pipe.save_pretrained(tmp_path / "m")


def test_run_keeps_its_previous_model(tmp_path):
    model, other = tiny_model(seed=0), tiny_model(seed=1)
    save_model(model.state_dict(), model, PROCESSOR, tmp_path)
    before = contents(tmp_path)
    with small_files(), pytest.raises(OSError, match=TOLD):
        save_model(other.state_dict(), other, PROCESSOR, tmp_path)
    assert contents(tmp_path) == before
    save_model(other.state_dict(), other, PROCESSOR, tmp_path)
    assert contents(tmp_path) != before


def test_conversion_leaves_no_partial_files(tmp_path, capsys):
    save_folder(tiny_model(), PROCESSOR, tmp_path / "old")
    with small_files(), pytest.raises(SystemExit) as ended:
        main(["convert", "transformers", str(tmp_path / "old"), str(tmp_path / "new")])
    assert ended.value.code == 2
    assert "error: the model cannot be written (" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
