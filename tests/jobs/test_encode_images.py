"""Encoding: the same ids as the processor's from every source, and the same bytes however it was interrupted."""

import errno
import json
import pickle
import sys
import threading
import time

import numpy as np
import pyarrow
import pytest
from datasets import ClassLabel, Dataset, List, Value, load_from_disk
from PIL import Image

from imagegpt import ColorPalette, ImageGPTImageProcessor
from imagegpt.data.encoded import EncodedDataset
from imagegpt.data.sources.folders import FolderSource
from imagegpt.data.sources.registry import open_images
from imagegpt.jobs.encode import encode
from imagegpt.jobs.encode_job import EncodeJob, default_shard_size
from imagegpt.jobs.executors import ProcessPool
from imagegpt.jobs.markers import Markers


def contents(folder):
    """Every file below a folder with its bytes, by its path within the folder; without the empty ones for locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def arrays(tmp_path, rgb):
    path = tmp_path / "src.npz"
    np.savez(path, images=rgb, labels=np.arange(30) % 4)
    return path


def test_what_datasets_finds(tmp_path, arrays, processor, palette, rgb):
    report = encode(arrays, tmp_path / "out", processor, shard_size=8)
    found = load_from_disk(tmp_path / "out")
    number = Value("int64")
    expected = {
        "ids": List(Value("uint16"), length=64),
        "label": number,
        "index": number,
        "pixel_hash": Value("uint64"),
    }
    assert found.features == expected
    assert np.array_equal(found.with_format("numpy")["ids"][:], processor(rgb)["input_ids"])
    assert found["label"][:] == [index % 4 for index in range(30)]
    assert found["index"][:] == list(range(30))
    names = [f"data-0000{shard}-of-00004.arrow" for shard in range(4)]
    markers = [f".imagegpt/0000{shard}.done" for shard in range(4)]
    others = ["dataset_info.json", "encoding.json", "preprocessor_config.json", "state.json"]
    assert sorted(contents(tmp_path / "out")) == [*markers, *names, *others]
    assert ColorPalette.load(tmp_path / "out") == palette
    assert (report.num_images, report.broken, report.splits[0].num_new, report.splits[0].split) == (30, [], 30, None)
    told = json.loads((tmp_path / "out" / "encoding.json").read_text())
    assert told["finished"]
    assert (told["source"], told["palette"], told["num_colors"]) == (str(arrays), palette.fingerprint, 64)
    assert (told["num_source"], told["num_images"], told["num_broken"], told["shard_size"]) == (30, 30, 0, 8)
    assert told["processor"] == {"size": {"height": 8, "width": 8}, "resize_mode": "crop", "resample": 2,
                                 "background": [255, 255, 255]}  # fmt: skip


@pytest.mark.parametrize("mode", ["crop", "squash"])
def test_two_hundred_photos_two_of_them_bad(tmp_path, photos, palette, mode):
    processor = ImageGPTImageProcessor(palette, size=(8, 12), resize_mode=mode, background="red")
    report = encode(photos, tmp_path / "out", processor, shard_size=64)
    assert [(one.index, one.name, one.trouble) for one in report.broken] == [
        (150, "dog/150.jpg", "unreadable"),
        (151, "dog/151.png", "huge"),
    ]
    assert "dog/150.jpg cannot be decoded, it may be truncated" in report.broken[0].message
    assert "dog/151.png has more pixels than Pillow's limit of 89,478,485" in report.broken[1].message
    paths = sorted(path for path in photos.rglob("*.*") if path.stem not in ("150", "151"))
    encoded = EncodedDataset(tmp_path / "out")
    assert np.array_equal(encoded.read(np.array(range(198))), processor(paths)["input_ids"])
    assert encoded.labels.tolist() == [0] * 100 + [1] * 98
    assert encoded.indices.tolist() == [index for index in range(200) if index not in (150, 151)]
    features = load_from_disk(tmp_path / "out").features
    assert features["label"] == ClassLabel(names=["cat", "dog"])
    told = json.loads((tmp_path / "out" / "encoding.json").read_text())
    assert (told["num_source"], told["num_images"], told["num_broken"]) == (200, 198, 2)
    assert [one["name"] for one in told["broken"]] == ["dog/150.jpg", "dog/151.png"]
    assert told["classes"] == ["cat", "dog"]


def test_a_missing_file_is_one_of_the_broken(tmp_path, photos, processor, monkeypatch):
    """It goes away after the source was opened."""
    source = FolderSource(
        photos, str(photos), None, None, [("cat", "000.jpg"), ("cat", "gone.jpg"), ("cat", "001.jpg")]
    )
    monkeypatch.setattr("imagegpt.jobs.encode.open_images", lambda src, split: source)
    report = encode(photos, tmp_path / "out", processor, max_broken=0.34)
    assert [(one.name, one.trouble) for one in report.broken] == [("cat/gone.jpg", "missing")]


def test_images_without_labels_have_minus_one(tmp_path, rgb, processor):
    np.save(tmp_path / "a.npy", rgb)
    encode(tmp_path / "a.npy", tmp_path / "out", processor)
    assert load_from_disk(tmp_path / "out")["label"][:] == [-1] * 30


def test_all_splits_at_once(tmp_path, rgb, processor):
    place = tmp_path / "src"
    place.mkdir()
    for split, images in {"test": rgb[:5], "val": rgb[5:9], "train": rgb[9:]}.items():
        np.savez(place / f"{split}.npz", images=images, labels=np.arange(len(images)))
    told = []
    report = encode(place, tmp_path / "out", processor, on_progress=lambda *numbers: told.append(numbers))
    assert [one.split for one in report.splits] == ["train", "validation", "test"]
    assert [one.num_images for one in report.splits] == [21, 4, 5]
    assert (told[0], told[-1], report.num_images) == ((0, 30), (30, 30), 30)
    assert told == sorted(told)
    found = load_from_disk(tmp_path / "out")
    assert list(found) == ["train", "validation", "test"]
    assert np.array_equal(found["validation"].with_format("numpy")["ids"][:], processor(rgb[5:9])["input_ids"])
    assert str(found["test"].split) == "test"
    assert ColorPalette.load(tmp_path / "out") == processor.palette
    one = encode(place, tmp_path / "one", processor, split="valid")
    assert one.splits[0].split == "validation"
    assert contents(tmp_path / "one") == contents(tmp_path / "out" / "validation")


class Interruption(BaseException):
    pass


@pytest.mark.parametrize("after", [0, 16, 24])
def test_interrupted_it_goes_on_to_the_same_bytes(tmp_path, arrays, processor, after):
    encode(arrays, tmp_path / "whole", processor, shard_size=4)

    def interrupt(done, total):
        if done >= after:
            raise Interruption

    out = tmp_path / "out"
    with pytest.raises(Interruption):
        encode(arrays, out, processor, shard_size=4, on_progress=interrupt)
    if after:
        assert not json.loads((out / "encoding.json").read_text())["finished"]
        (out / f".data-00007-of-00008.arrow.{'0' * 8}.tmp").write_bytes(b"half")
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("data-*")} if out.exists() else {}
    assert len(before) == max(0, after // 4 - 1)  # the last one was read, but not written
    told = []
    report = encode(arrays, out, processor, shard_size=4, on_progress=lambda done, _: told.append(done))
    assert contents(out) == contents(tmp_path / "whole")
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert report.splits[0].num_new == 30 - 4 * len(before)
    assert (told[0], told[-1]) == (4 * len(before), 30)


def test_done_is_done(tmp_path, arrays, processor, monkeypatch):
    out = tmp_path / "out"
    encode(arrays, out, processor, shard_size=8)
    before = contents(out)
    monkeypatch.setattr(EncodeJob, "make", lambda *_, **__: pytest.fail("it read images"))
    report = encode(arrays, out, processor, shard_size=8)
    assert (report.num_images, report.splits[0].num_new, contents(out)) == (30, 0, before)


@pytest.mark.parametrize("spoil", ["empty", "cut", "gone"])
def test_a_damaged_shard_is_made_again(tmp_path, arrays, processor, spoil):
    """A power cut may leave a file that was renamed in time and has nothing in it."""
    out = tmp_path / "out"
    encode(arrays, out, processor, shard_size=8)
    before, shard = contents(out), out / "data-00002-of-00004.arrow"
    if spoil == "gone":
        shard.unlink()
    else:
        shard.write_bytes(b"" if spoil == "empty" else shard.read_bytes()[:900])
    with pytest.warns(UserWarning, match=r"data-00002-of-00004.arrow is (damaged \(.*\)|missing) and is made again$"):
        assert encode(arrays, out, processor, shard_size=8).splits[0].num_new == 8
    assert contents(out) == before


def test_workers_make_the_same_bytes(tmp_path, photos, processor):
    """Processes are started, each opens the source itself, and broken images come back to the parent."""
    one = encode(photos, tmp_path / "one", processor, shard_size=20, num_workers=1)
    told = []
    two = encode(
        photos, tmp_path / "two", processor, shard_size=20, num_workers=2, on_progress=lambda *n: told.append(n)
    )
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert (two.broken, two.num_images) == (one.broken, one.num_images)
    assert (told[0], told[-1]) == ((0, 200), (200, 200))


@pytest.mark.slow
def test_all_parts_share_the_workers(tmp_path, rgb, processor, monkeypatch):
    place = tmp_path / "src"
    place.mkdir()
    np.savez(place / "train.npz", images=rgb[:20])
    np.savez(place / "test.npz", images=rgb[20:])
    pools, told = [], []
    start = ProcessPool.__init__
    monkeypatch.setattr(ProcessPool, "__init__", lambda *given: (pools.append(1), start(*given))[1])
    one, two = tmp_path / "one", tmp_path / "two"
    encode(place, one, processor, shard_size=5, num_workers=1)
    assert not pools
    encode(place, two, processor, shard_size=5, num_workers=2, on_progress=lambda *n: told.append(n))
    assert pools == [1]
    assert contents(one) == contents(two)
    assert told == sorted(told)
    assert (told[0], told[-1]) == ((0, 30), (30, 30))


def test_how_many_broken_are_too_many(tmp_path, photos, processor):
    encode(photos, tmp_path / "enough", processor, max_broken=0.01, shard_size=10)
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="are broken") as caught:
        encode(photos, out, processor, max_broken=0.0099, shard_size=10)
    assert str(caught.value) == (
        f"2 of 200 images of {photos} are broken and 0.99 % may be (dog/150.jpg is unreadable; dog/151.png is huge): "
        "repair or remove them, or raise max_broken"
    )
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("data-*")}
    assert len(before) == 16  # it stopped there
    assert encode(photos, out, processor, shard_size=10).splits[0].num_new == 40
    assert contents(out) == contents(tmp_path / "enough")
    with pytest.raises(ValueError, match=r"^2 of 200 images .* are broken and 0 % may be"):
        encode(photos, out, processor, max_broken=0, shard_size=10)  # also those found by an earlier call


def test_broken_throughout_is_refused(tmp_path, processor):
    for index in range(5):
        (tmp_path / f"{index}.png").write_bytes(b"x")
    with pytest.raises(
        ValueError, match=r"^none of the 5 images of .* can be read: 0.png is unreadable; .*; and 2 more$"
    ):
        encode(tmp_path, tmp_path / "out", processor, max_broken=1)
    assert not (tmp_path / "out" / "state.json").exists()


def test_a_shard_may_be_empty(tmp_path, rgb, processor, save):
    save(src={f"{index:02d}.png": image for index, image in enumerate(rgb[:12])})
    for index in range(4, 8):
        (tmp_path / "src" / f"{index:02d}.png").write_bytes(b"x")
    encode(tmp_path / "src", tmp_path / "out", processor, max_broken=0.5, shard_size=4)
    encoded = EncodedDataset(tmp_path / "out")
    assert np.array_equal(encoded.read(np.array(range(8))), processor(rgb[[0, 1, 2, 3, 8, 9, 10, 11]])["input_ids"])
    assert encoded.indices.tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert len(load_from_disk(tmp_path / "out")) == 8


OTHERS = {
    "palette": {"palette": ColorPalette.grey(9)},
    "size": {"size": 9},
    "resize_mode": {"resize_mode": "squash"},
    "resample": {"resample": 3},
    "background": {"background": "black"},
}


@pytest.mark.parametrize("name", [*OTHERS, "shard_size", "source", "number of images", "split", "version", "classes"])
def test_other_settings_are_refused(tmp_path, arrays, processor, palette, rgb, monkeypatch, name):
    out = tmp_path / "out"
    encode(arrays, out, processor, shard_size=8)
    before = contents(out)
    source, other, shard_size = arrays, processor, 8
    if name in OTHERS:
        other = ImageGPTImageProcessor(**{"palette": palette, "size": 8, **OTHERS[name]})
    elif name == "shard_size":
        shard_size = 9
    elif name == "source":
        source = arrays.rename(tmp_path / "b.npz")
    elif name == "number of images":
        np.savez(arrays, images=rgb[:29])
    elif name == "version":
        monkeypatch.setattr("importlib.metadata.version", lambda _: "99")
    else:
        told = json.loads((out / "encoding.json").read_text())
        (out / "encoding.json").write_text(json.dumps(told | {name: ["x"] if name == "classes" else "x"}))
        before = contents(out)
    with pytest.raises(ValueError, match=rf"^the images in .*out were encoded with another .*{name} \(") as caught:
        encode(source, out, other, shard_size=shard_size)
    assert str(caught.value).endswith("give the same, or choose another folder")
    assert "\n" not in str(caught.value)
    assert contents(out) == before


def test_several_calls_share_the_work(tmp_path, arrays, processor):
    """Each shard is made once, by the call that claims it first, and all calls end when all shards are finished."""
    encode(arrays, tmp_path / "whole", processor, shard_size=4)
    out, made, reports = tmp_path / "out", [], []
    make = EncodeJob.make

    def note(job, shard, report):
        made.append(shard)
        return make(job, shard, report)

    def call():
        reports.append(encode(arrays, out, processor, shard_size=4))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EncodeJob, "make", note)
        threads = [threading.Thread(target=call) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(made) == list(range(8))
    assert [report.num_images for report in reports] == [30] * 3
    assert contents(out) == contents(tmp_path / "whole")
    assert [path.name for path in out.rglob("*.lock")] in ([], [".imagegpt.lock"])


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_shard_that_another_process_makes_is_waited_for(tmp_path, arrays, processor, num_workers):
    encode(arrays, tmp_path / "whole", processor, shard_size=4)
    out = tmp_path / "out"
    (out / ".imagegpt").mkdir(parents=True)
    claim = Markers(out, "encodes").claim(2)
    claim.__enter__()
    (out / f".data-00002-of-00008.arrow.{'0' * 8}.tmp").write_bytes(b"half")  # the other process is writing it

    calling = threading.Thread(target=lambda: encode(arrays, out, processor, shard_size=4, num_workers=num_workers))
    calling.start()
    others = [out / f"data-0000{number}-of-00008.arrow" for number in range(8) if number != 2]
    while not all(path.is_file() for path in others):
        assert calling.is_alive()
        time.sleep(0.02)
    assert (out / f".data-00002-of-00008.arrow.{'0' * 8}.tmp").is_file()
    assert not json.loads((out / "encoding.json").read_text())["finished"]
    claim.__exit__(None, None, None)
    calling.join()
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOMEM, "Cannot allocate memory"), pyarrow.lib.ArrowMemoryError("none")]
)
def test_no_memory_is_not_called_damage(tmp_path, arrays, processor, monkeypatch, error):
    encode(arrays, tmp_path / "out", processor)

    def no_memory(_):
        raise error

    monkeypatch.setattr(pyarrow, "memory_map", no_memory)
    with pytest.raises(type(error)):
        EncodedDataset(tmp_path / "out")
    with pytest.raises(type(error)):
        encode(arrays, tmp_path / "out", processor)


def foreign(out):
    out.mkdir()
    (out / "diary.txt").write_text("dear")


def foreign_split(out):
    out.mkdir()
    (out / "extra").mkdir()


def damaged(out):
    out.mkdir()
    (out / "encoding.json").write_text("{}")


@pytest.mark.parametrize(
    ("prepare", "options", "message"),
    [
        (foreign, {}, "out holds diary.txt, which is no part of this encoding: move it away"),
        (damaged, {}, "out/encoding.json was not written by imagegpt or is damaged: encode the"),
        (lambda out: out.write_text("x"), {}, "out is a file: encoded images need a folder"),
        (foreign_split, {"source": "digits"}, "out holds extra, which is no part of this encoding"),
        (None, {"out": "no/out"}, "there is no folder no: create it first, or choose another path"),
        (None, {"out": "/proc/out"}, "/proc/out cannot be made (No such file or directory): choose another"),
        (None, {"num_workers": 0}, "num_workers is 0: it must be an integer from 1 to 1,024"),
        (None, {"shard_size": 0}, "shard_size is 0: it must be an integer from 1 to 1,048,576"),
        (None, {"shard_size": True}, "shard_size is True: it must be an integer"),
        (None, {"max_broken": 1.5}, "max_broken is 1.5: it must be a number from 0 to 1"),
        (None, {"max_broken": float("nan")}, "max_broken is nan: it must be a number from 0 to 1"),
        (None, {"max_broken": "5"}, "max_broken is '5': it must be a number from 0 to 1"),
        (None, {"processor": ImageGPTImageProcessor(size=8)}, "this processor has no palette: give it one"),
        (None, {"file_format": "csv"}, "file_format is 'csv': choose arrow or parquet"),
        (None, {"executor": "cloud"}, "the executor is 'cloud': choose local or ray"),
        (None, {"split": "train"}, "src.npz has no splits and 'train' was asked for: leave the split out"),
        (None, {"source": "nowhere.npz"}, "'nowhere.npz' does not exist"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(
    tmp_path, arrays, processor, monkeypatch, prepare, options, message
):
    monkeypatch.chdir(tmp_path)
    if prepare is not None:
        prepare(tmp_path / "out")
    before = contents(tmp_path)
    given = {"source": "src.npz", "out": "out", "processor": processor, **options}
    with pytest.raises((ValueError, OSError)) as caught:
        encode(**given)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before
    assert prepare is not None or not (tmp_path / "out").exists()


def test_without_pyarrow_one_sentence(tmp_path, arrays, processor, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        ValueError, match=r"^encoding images needs the library datasets: pip install 'imagegpt\[data\]'"
    ):
        encode(arrays, tmp_path / "out", processor)


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path, photos, processor):
    def touch(done, total):
        if done == total:
            (photos / "cat" / "000.jpg").touch()

    with pytest.raises(ValueError, match=r"^the files of .* have changed meanwhile: give the same command again$"):
        encode(photos, tmp_path / "out", processor, shard_size=100, on_progress=touch)
    assert not json.loads((tmp_path / "out" / "encoding.json").read_text())["finished"]
    assert encode(photos, tmp_path / "out", processor, shard_size=100).num_images == 198


def test_a_source_is_hashed_once_by_all_calls(tmp_path, photos, processor, monkeypatch):
    """Also by a call that continues the work of another: the fingerprint is in the folder until it is finished."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def interrupt(done, total):
        if done > 100:
            raise Interruption

    with pytest.raises(Interruption):
        encode(photos, tmp_path / "out", processor, shard_size=50, on_progress=interrupt)
    with monkeypatch.context() as patch:
        patch.setattr("imagegpt.jobs.encode_job.source_fingerprint", lambda _: pytest.fail("it hashed the source"))
        assert encode(photos, tmp_path / "out", processor, shard_size=50).num_images == 198
    assert "source_stamp" not in json.loads((tmp_path / "out" / "encoding.json").read_text())


def test_workers_do_not_list_the_source(tmp_path, photos, processor, monkeypatch):
    source = open_images(photos)
    source.save_listing(tmp_path / "listing")
    content = pickle.dumps(source)
    assert len(content) < 1000
    monkeypatch.setattr("imagegpt.data.sources.folders.image_files", lambda _: pytest.fail("it listed the folder"))
    copy = pickle.loads(content)
    assert (len(copy), copy[7], copy.labels.tolist()) == (len(source), source[7], source.labels.tolist())


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_parquet_shards_have_the_same_images(tmp_path, arrays, processor, num_workers):
    encode(arrays, tmp_path / "arrow", processor, shard_size=8)
    out = tmp_path / "out"
    encode(arrays, out, processor, shard_size=8, file_format="parquet", num_workers=num_workers)
    expected, found = EncodedDataset(tmp_path / "arrow"), EncodedDataset(out)
    everything = np.arange(30)
    assert np.array_equal(found.read(everything), expected.read(everything))
    assert np.array_equal(found.hashes, expected.hashes)
    table = Dataset.from_parquet([str(path) for path in sorted(out.glob("*.parquet"))], cache_dir=str(tmp_path / "hf"))
    assert table.features == load_from_disk(tmp_path / "arrow").features
    assert np.array_equal(table.with_format("numpy")["ids"][:], expected.read(everything))
    assert not (out / "state.json").exists()
    path = out / "data-00001-of-00004.parquet"
    before, content = contents(out), path.read_bytes()
    path.write_bytes(content[:50] + bytes([content[50] ^ 4]) + content[51:])
    with pytest.raises(ValueError, match=r"data-00001-of-00004.parquet is damaged \(its SHA-256"):
        EncodedDataset(out)
    with pytest.warns(UserWarning, match="is made again"):
        encode(arrays, out, processor, shard_size=8, file_format="parquet")
    assert contents(out) == before
    with pytest.raises(ValueError, match=r"with another format \(parquet, not arrow\)"):
        encode(arrays, out, processor, shard_size=8)


@pytest.mark.parametrize(
    ("num_images", "side", "expected"),
    [
        (1, 32, 1024), (10_000, 32, 1024), (60_000, 32, 3750), (1_281_167, 32, 8192), (14_000_000, 32, 8192),
        (14_000_000, 224, 167), (10, 1024, 8),
    ],
)  # fmt: skip
def test_default_shard_size_is_sixteen_megabytes_or_a_sixteenth(num_images, side, expected):
    assert default_shard_size(num_images, side * side) == expected


def test_a_huge_palette_fits(tmp_path, rgb):
    """65,536 colours need all 16 bits."""
    colors = np.stack(np.unravel_index(np.arange(65_536), (32, 64, 32)), axis=1) * (8, 4, 8)
    processor = ImageGPTImageProcessor(ColorPalette.from_rgb(colors), size=8)
    Image.fromarray(np.full((8, 8, 3), (248, 252, 248), np.uint8)).save(tmp_path / "a.png")
    encode(tmp_path, tmp_path / "out", processor)
    assert EncodedDataset(tmp_path / "out").read(np.array([0])).tolist() == [[65_535] * 64]
