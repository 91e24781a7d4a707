import pytest

from helpers import tiny_model
from imagegpt import ColorPalette, ImageGPTImageProcessor, ImageGPTPipeline
from imagegpt.jobs.sample import sample_many


@pytest.fixture
def make_pipe():
    """A random model of 4 x 4 pixels and 16 grey levels."""

    def make(palette=None, backend="auto", **overrides):
        processor = ImageGPTImageProcessor(palette or ColorPalette.grey(16), size=4)
        return ImageGPTPipeline(tiny_model(**overrides), processor, backend=backend)

    return make


@pytest.fixture
def pipe(make_pipe):
    return make_pipe()


@pytest.fixture
def many(pipe, tmp_path):
    """`sample_many` with shards of four into the folder "run"; returns the number of new images."""

    def call(num, folder="run", **options):
        options = {"pipe": pipe, "seed": 5, "shard_size": 4, "name": "tiny", **options}
        return sample_many(options.pop("pipe"), num, tmp_path / folder, **options).num_new

    return call


@pytest.fixture
def contents(tmp_path):
    """Every file of a folder with its bytes, by its path within the folder; without the empty ones for locks."""

    def read(folder="run"):
        files = (path for path in (tmp_path / folder).rglob("*") if path.is_file() and path.suffix != ".lock")
        return {str(path.relative_to(tmp_path / folder)): path.read_bytes() for path in files}

    return read


@pytest.fixture
def batches(pipe, monkeypatch):
    """The seeds of every batch that the model samples, in a list that grows."""
    seen = []
    generate = pipe.sampler.generate

    def spy(*args, seeds, **options):
        seen.append(tuple(seeds))
        return generate(*args, seeds=seeds, **options)

    monkeypatch.setattr(pipe.sampler, "generate", spy)
    return seen
