"""The content of the files of a sampling job, and how damage to them is noticed."""

import random
import sys

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from imagegpt.jobs.image_formats import damage_of
from imagegpt.sampling import SamplingRules


def test_pngs_are_the_pipelines_images_and_say_how_they_were_made(many, pipe, tmp_path):
    assert many(6, rules=SamplingRules(temperature=0.5, top_k=3)) == 6
    for index, expected in enumerate(pipe.sample(6, seed=5, temperature=0.5, top_k=3)):
        with Image.open(tmp_path / f"run/0000/{index:08d}.png") as image:
            assert np.array_equal(np.asarray(image), np.asarray(expected))
            assert image.text == {
                "Software": "imagegpt 0.1.0",
                "Comment": "created with iGPT",
                "model": "tiny",
                "seed": "5",
                "rules": "temperature 0.5, top-k 3",
                "index": str(index),
            }


def test_npz_shards_hold_ids_and_all_it_takes_to_make_images_of_them(many, pipe, tmp_path):
    many(6, file_format="npz")
    names = sorted(path.name for path in (tmp_path / "run").glob("[!.]*"))
    assert names == ["00000000.npz", "00000004.npz", "run.json"]
    shards = [np.load(tmp_path / "run" / name) for name in names[:2]]
    assert [list(shard["indices"]) for shard in shards] == [[0, 1, 2, 3], [4, 5]]
    ids = np.concatenate([shard["ids"] for shard in shards])
    assert (ids.shape, ids.dtype) == ((6, 16), np.uint16)
    assert shards[1]["seed"] == 5
    assert list(shards[1]["size"]) == [4, 4]
    images = shards[0]["palette"][ids].reshape(6, 4, 4, 3)
    expected = [np.asarray(image.convert("RGB")) for image in pipe.sample(6, seed=5)]
    assert np.array_equal(images, expected)


@pytest.mark.parametrize("file_format", ["arrow", "parquet"])
def test_tables_are_read_by_datasets(many, pipe, tmp_path, file_format):
    datasets = pytest.importorskip("datasets")
    many(6, file_format=file_format)
    paths = [str(path) for path in sorted((tmp_path / "run").glob(f"*.{file_format}"))]
    if file_format == "parquet":
        together = datasets.Dataset.from_parquet(paths, cache_dir=str(tmp_path / "cache"))
    else:
        together = datasets.concatenate_datasets([datasets.Dataset.from_file(path) for path in paths])
    assert together["index"][:] == list(range(6))
    for row, expected in zip(together, pipe.sample(6, seed=5), strict=True):
        assert np.array_equal(np.asarray(row["image"]), np.asarray(expected))
        assert np.array_equal(pipe.processor.palette.decode(np.array(row["ids"]))[:, 0], np.asarray(expected).ravel())


@pytest.mark.parametrize("file_format", ["arrow", "parquet"])
def test_tables_without_datasets_are_one_sentence(many, tmp_path, monkeypatch, file_format):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"needs the library datasets: pip install 'imagegpt\[data\]', or choose png"):
        many(6, file_format=file_format)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("file_format", ["png", "npz", "arrow", "parquet"])
@pytest.mark.parametrize("content", [b"", b"cut", 0.9])
def test_files_that_are_not_whole_are_made_again(many, contents, tmp_path, file_format, content):
    many(6, file_format=file_format)
    whole = contents()
    path = tmp_path / "run" / sorted(name for name in whole if not name.startswith("."))[1]
    written = path.read_bytes()
    path.write_bytes(written[: int(content * len(written))] if isinstance(content, float) else content)
    with pytest.warns(UserWarning, match=rf"{path.name} is damaged \(.+\) and is made again$"):
        assert many(6, file_format=file_format) == (1 if file_format == "png" else 2)
    assert contents() == whole


def images_in(path):
    """What somebody sees who opens a file."""
    if path.suffix == ".png":
        return np.asarray(Image.open(path)).tolist()
    if path.suffix == ".npz":
        with np.load(path) as shard:
            return [shard[name].tolist() for name in ("ids", "indices", "palette", "size")]
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    with pyarrow.ipc.open_stream(path.read_bytes()) as stream:
        return stream.read_all().to_pylist()


@pytest.mark.parametrize("file_format", ["png", "npz", "arrow", "parquet"])
def test_a_changed_byte_is_never_another_image(many, contents, tmp_path, file_format):
    """Files have bytes that mean nothing, such as the time of day in a zip: those may change."""
    many(6, file_format=file_format)
    path = tmp_path / "run" / sorted(name for name in contents() if not name.startswith("."))[1]
    content, images = path.read_bytes(), images_in(path)
    num_images = 1 if file_format == "png" else 2
    assert damage_of(path, num_images) is None
    noticed = 0
    for at in random.Random(0).sample(range(len(content)), 150):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        damage = damage_of(path, num_images)
        assert damage is not None or images_in(path) == images, at
        assert damage is None or "\n" not in damage
        noticed += damage is not None
    assert noticed > 50
