import pytest
import torch
from PIL import Image
from transformers.utils import logging

from imagegpt import (
    ColorPalette,
    ImageGPTConfig,
    ImageGPTForCausalImageModeling,
    ImageGPTImageProcessor,
    ImageGPTPipeline,
)
from imagegpt.cli import main
from imagegpt.files.locks import LOCK_FILE


@pytest.fixture(autouse=True)
def _loud_again():
    """Commands silence transformers for their process, which the other tests share."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    yield
    logging.set_verbosity(level)
    (logging.enable_progress_bar if bars else logging.disable_progress_bar)()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A folder with a random model of 4 x 4 pixels and 10 grey levels."""
    torch.manual_seed(0)
    config = ImageGPTConfig(vocab_size=11, n_positions=16, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    processor = ImageGPTImageProcessor(ColorPalette.grey(10), size=4)
    ImageGPTPipeline(ImageGPTForCausalImageModeling(config), processor).save_pretrained(folder)
    return folder


@pytest.fixture
def workplace(tmp_path, monkeypatch, tiny_folder):
    """An empty current folder with an image "cat.png" and the model as "tiny"."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    Image.linear_gradient("L").save("cat.png")
    (place / "tiny").symlink_to(tiny_folder)
    return place


@pytest.fixture
def run(capsys):
    """Run the command line: its exit status, stdout and stderr."""

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call


@pytest.fixture
def names_in(workplace):
    """The files that are in the current folder, beyond those it started with."""
    return lambda: sorted(path.name for path in workplace.rglob("*") if path.name not in ("cat.png", "tiny", LOCK_FILE))
