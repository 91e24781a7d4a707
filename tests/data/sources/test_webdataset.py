"""WebDataset tar files, all of them local."""

import contextlib
import io
import pickle
import tarfile

import numpy as np
import pytest

from imagegpt.data.sources.registry import list_splits, open_images
from imagegpt.data.sources.webdataset import expand_pattern

pytestmark = pytest.mark.usefixtures("own_cache")


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path, rgb, png):
    """Three shards of two images with labels for training, and one for validation."""
    (tmp_path / "shards").mkdir()
    for shard in range(4):
        members = {}
        for index in (2 * shard, 2 * shard + 1):
            members[f"{index:04d}.png"] = png(rgb[index])
            members[f"{index:04d}.cls"] = str(index % 3).encode()
        write_tar(tmp_path / "shards" / (f"train-{shard:03d}.tar" if shard < 3 else "val-000.tar"), members)
    return tmp_path / "shards"


def read(source):
    return np.stack([np.asarray(source[index].image) for index in range(len(source))])


def test_a_folder_has_splits(shards, rgb):
    assert list_splits(shards) == ["train", "validation"]
    train = open_images(shards, split="train")
    assert np.array_equal(read(train), rgb[:6])
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert (train.classes, train[4].label, train[4].name) == (None, 1, "row 4 (0004.png)")
    assert list(train.files()) == [shards / f"train-{shard:03d}.tar" for shard in range(3)]
    assert np.array_equal(read(open_images(shards, split="val")), rgb[6:8])
    assert np.array_equal(read(pickle.loads(pickle.dumps(train))), rgb[:6])


@pytest.mark.parametrize(
    ("pattern", "rows"),
    [
        ("train-001.tar", slice(2, 4)),
        ("train-{000..002}.tar", slice(0, 6)),
        ("train-{000,002}.tar", [0, 1, 4, 5]),
        ("train-*.tar", slice(0, 6)),
        ("{train,val}-00[0-1].tar", [0, 1, 2, 3, 6, 7]),
    ],
)
def test_files_and_patterns(shards, rgb, pattern, rows):
    source = open_images(f"{shards}/{pattern}")
    assert np.array_equal(read(source), rgb[rows])
    assert list_splits(f"{shards}/{pattern}") == []


def test_braces_keep_their_order_and_zeros(tmp_path):
    for number in (8, 9, 10):
        (tmp_path / f"{number:02d}.tar").touch()
    assert [path.name for path in expand_pattern(f"{tmp_path}/{{08..10}}.tar")] == ["08.tar", "09.tar", "10.tar"]
    assert [path.name for path in expand_pattern(f"{tmp_path}/{{10,08}}.tar")] == ["10.tar", "08.tar"]


def test_a_pattern_must_match(shards):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*train-003\.tar: check the pattern"):
        open_images(f"{shards}/train-{{000..003}}.tar")
    with pytest.raises(ValueError, match=r"has the range \{5\.\.1\}: give an ascending one"):
        open_images(f"{shards}/train-{{5..1}}.tar")
    with pytest.raises(ValueError, match=r"has the range \{0\.\.9999999\}: give an ascending one of at most 1,000,000"):
        open_images(f"{shards}/train-{{0..9999999}}.tar")


def test_a_damaged_tar_is_one_sentence(tmp_path, png, rgb):
    (tmp_path / "a.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(ValueError, match=r"a\.tar cannot be read as WebDataset \(") as caught:
        open_images(tmp_path / "a.tar")
    assert "\n" not in str(caught.value)
    write_tar(tmp_path / "b.tar", {"0.txt": b"cat"})
    with pytest.raises(ValueError, match=r"b\.tar has no column of images"):
        open_images(tmp_path / "b.tar")


def test_a_broken_image_is_the_callers_to_count(tmp_path, png, rgb):
    write_tar(tmp_path / "a.tar", {"0.png": png(rgb[0]), "1.png": b"text", "2.png": png(rgb[2])})
    source = open_images(tmp_path / "a.tar")
    with pytest.raises(ValueError, match=r"^row 1 \(1\.png\) is not an image that Pillow can read"):
        source[1]
    assert np.array_equal(np.asarray(source[2].image), rgb[2])


class Exploit:
    """Unpickling this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("suffix", ["pkl", "pickle", "pyd", "npy", "npz", "pth", "pt"])
def test_nothing_is_unpickled(tmp_path, png, rgb, suffix):
    write_tar(tmp_path / "a.tar", {"0.png": png(rgb[0]), f"0.{suffix}": pickle.dumps(Exploit(tmp_path / "made"))})
    with contextlib.suppress(ValueError):
        assert np.array_equal(read(open_images(tmp_path / "a.tar")), rgb[:1])
    assert not (tmp_path / "made").exists()
