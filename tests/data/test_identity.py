"""What tells pictures and sources apart: their content, never their names or dates alone."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from imagegpt import ColorPalette, ImageGPTImageProcessor
from imagegpt.data import hashing
from imagegpt.data.encoded import EncodedDataset
from imagegpt.data.encoding_folder import ENCODING_FORMAT
from imagegpt.data.hashing import pixel_hashes, source_fingerprint
from imagegpt.data.identity import pixel_hash
from imagegpt.data.sources.registry import open_images
from imagegpt.data.splits import split_by_hash
from imagegpt.files.paths import cache_folder
from imagegpt.jobs.encode import encode


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, which trusts files however new they are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashing, "_SETTLED_NS", -1)
    return tmp_path / "cache" / "imagegpt" / "hashes"


def names(report):
    return [split.num_new for split in report.splits]


def test_a_hash_is_of_the_pixels(tmp_path, rgb):
    """However they are stored; in another size, order or colour it is another."""
    Image.fromarray(rgb[0]).save(tmp_path / "a.png")
    Image.fromarray(rgb[0]).convert("RGBA").save(tmp_path / "b.png")
    same = [rgb[0], Image.fromarray(rgb[0]), tmp_path / "a.png", tmp_path / "b.png", rgb[0].transpose(2, 0, 1)]
    assert len({pixel_hash(one) for one in same}) == 1
    others = [rgb[0].reshape(4, 16, 3), rgb[0][::-1], rgb[0] ^ 1, rgb[1]]
    assert len({pixel_hash(one) for one in (rgb[0], *others)}) == 5


def test_a_hash_is_of_the_picture_upright(tmp_path, rgb):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgb[0]).save(tmp_path / "turned.png", exif=exif)
    assert pixel_hash(tmp_path / "turned.png") == pixel_hash(np.rot90(rgb[0], -1))


@pytest.mark.parametrize("background", ["white", "black"])
def test_pictures_and_their_encoding_have_the_same_hashes(tmp_path, photos, palette, background):
    """Whatever transparent ones are laid on; broken ones have none."""
    processor = ImageGPTImageProcessor(palette, size=8, background=background)
    encode(photos, tmp_path / "out", processor)
    found = pixel_hashes(open_images(photos))
    assert len(found.broken) == 2
    assert (found.hashes[found.hashes != 0] == EncodedDataset(tmp_path / "out").hashes).all()


def test_replaced_pictures_are_noticed(tmp_path, rgb, processor, save):
    """Sources were told apart by the names of files: the old ids stayed, with "0 new"."""
    save(src={f"{index}.png": image for index, image in enumerate(rgb[:9])})
    encode(tmp_path / "src", tmp_path / "out", processor)
    assert names(encode(tmp_path / "src", tmp_path / "out", processor)) == [0]
    save(src={"3.png": rgb[20]})
    with pytest.raises(
        ValueError, match=r"^the images in .*out were encoded with another content of the source \("
    ) as c:
        encode(tmp_path / "src", tmp_path / "out", processor)
    assert "\n" not in str(c.value)
    save(src={"3.png": rgb[3]})
    assert names(encode(tmp_path / "src", tmp_path / "out", processor)) == [0]


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_an_overwritten_array_is_noticed(tmp_path, rgb, processor, suffix):
    path = tmp_path / f"a{suffix}"
    for images in (rgb, 255 - rgb):
        np.save(path, images) if suffix == ".npy" else np.savez(path, images=images)
        if images is rgb:
            facts = path.stat()
            encode(path, tmp_path / "out", processor)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert path.stat().st_size == facts.st_size
    with pytest.raises(ValueError, match="were encoded with another content of the source"):
        encode(path, tmp_path / "out", processor)


def test_overwritten_cifar_files_are_noticed(tmp_path, processor):
    content = np.random.default_rng(0).integers(0, 10, (4, 3073), dtype=np.uint8)
    for first in (0, 1):
        content[0, 5] = first
        (tmp_path / "data_batch_1.bin").write_bytes(content.tobytes())
        if not first:
            encode(tmp_path / "data_batch_1.bin", tmp_path / "out", processor)
    with pytest.raises(ValueError, match="were encoded with another content of the source"):
        encode(tmp_path / "data_batch_1.bin", tmp_path / "out", processor)


def test_a_touched_or_copied_source_is_the_same(tmp_path, rgb, processor, save):
    save(src={f"{index}.png": image for index, image in enumerate(rgb[:5])})
    first = source_fingerprint(open_images(tmp_path / "src"))
    shutil.copytree(tmp_path / "src", tmp_path / "copy")
    for path in (tmp_path / "src").iterdir():
        path.touch()
    assert source_fingerprint(open_images(tmp_path / "src")) == first
    assert source_fingerprint(open_images(tmp_path / "copy")) == first


def test_what_has_not_changed_is_not_read_again(tmp_path, rgb, save, monkeypatch):
    save(src={f"{index}.png": image for index, image in enumerate(rgb[:5])})
    before = pixel_hashes(open_images(tmp_path / "src")).hashes, source_fingerprint(open_images(tmp_path / "src"))
    save(src={"2.png": rgb[7]})
    read = []
    hash_several = hashing._hash_several
    monkeypatch.setattr(hashing, "_hash_several", lambda source, rows: read.append(rows) or hash_several(source, rows))
    after = pixel_hashes(open_images(tmp_path / "src")).hashes
    assert read == [[2]]
    assert (before[0] != after).tolist() == [False, False, True, False, False]
    assert source_fingerprint(open_images(tmp_path / "src")) != before[1]


def test_what_a_killed_process_left_in_the_cache_goes(tmp_path, rgb, save, cache):
    """It stayed for ever."""
    save(src={"a.png": rgb[0]})
    pixel_hashes(open_images(tmp_path / "src"))
    (kept,) = cache.iterdir()
    left, other = cache / f".{kept.name}.0123abcd.tmp", cache / ".other-pixels.0123abcd.tmp"
    left.touch()
    other.touch()  # another process may be writing it
    save(src={"a.png": rgb[1]})
    pixel_hashes(open_images(tmp_path / "src"))
    assert sorted(cache.iterdir()) == [other, kept]


@pytest.mark.parametrize("spoil", ["absent", "empty", "cut", "flipped", "read-only", "a folder"])
def test_the_cache_does_no_harm(tmp_path, rgb, save, cache, spoil):
    save(src={f"{index}.png": image for index, image in enumerate(rgb[:5])})
    expected = pixel_hashes(open_images(tmp_path / "src")).hashes, source_fingerprint(open_images(tmp_path / "src"))
    assert list(expected[0]) == [pixel_hash(image) for image in rgb[:5]]
    assert cache == cache_folder() / "hashes"
    files = sorted(cache.iterdir())
    assert len(files) == 2
    for path in files:
        content = bytearray(path.read_bytes())
        if spoil in ("absent", "a folder"):
            path.unlink()
        if spoil == "a folder":
            path.mkdir()
        elif spoil == "empty":
            path.write_bytes(b"")
        elif spoil == "cut":
            path.write_bytes(content[:-16])
        elif spoil == "flipped":
            content[-1] ^= 1
            path.write_bytes(content)
    if spoil == "read-only":
        shutil.rmtree(cache)
        cache.write_bytes(b"")  # no folder, so that nothing can be written, not even by root
    assert (pixel_hashes(open_images(tmp_path / "src")).hashes == expected[0]).all()
    assert source_fingerprint(open_images(tmp_path / "src")) == expected[1]


def test_a_file_that_has_just_changed_is_not_trusted(tmp_path, rgb, save, cache, monkeypatch):
    """Two changes within a tick of the clock have the same time."""
    monkeypatch.setattr(hashing, "_SETTLED_NS", 2_000_000_000)
    save(src={"0.png": rgb[0]})
    pixel_hashes(open_images(tmp_path / "src"))
    read = []
    monkeypatch.setattr(hashing, "_hash_several", lambda source, rows: read.append(rows) or ([1], []))
    pixel_hashes(open_images(tmp_path / "src"))
    assert read == [[0]]


@pytest.mark.slow
def test_many_pictures_are_hashed_by_several_processes(tmp_path, photos, monkeypatch):
    one = pixel_hashes(open_images(photos))
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(hashing, "_MIN_FILES_FOR_PROCESSES", 10)
    monkeypatch.setattr(hashing, "_TASK_IMAGES", 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    several = pixel_hashes(open_images(photos))
    assert (several.hashes == one.hashes).all()
    assert several.broken == one.broken


HASHES = np.random.default_rng(0).integers(1, 1 << 64, 5000, dtype=np.uint64)


def test_shares_are_expected_and_parts_are_apart():
    parts = split_by_hash(HASHES, seed=3, validation=0.1, test=0.2)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(5000))
    assert len(parts["validation"]) == pytest.approx(500, abs=80)
    assert len(parts["test"]) == pytest.approx(1000, abs=120)
    assert list(split_by_hash(HASHES, seed=3, validation=0.1)) == ["train", "validation"]


def test_equal_images_share_a_part_and_growth_moves_none():
    before = split_by_hash(HASHES[:1000], seed=0, validation=0.2, test=0.1)
    grown = split_by_hash(np.concatenate([HASHES[:1000], HASHES]), seed=0, validation=0.2, test=0.1)
    for part, rows in before.items():
        assert set(rows) == {row for row in grown[part] if row < 1000}
        assert set(rows + 1000) == {row for row in grown[part] if 1000 <= row < 2000}


def test_a_seed_and_a_share_change_no_more_than_they_must():
    some, more = (split_by_hash(HASHES, seed=1, validation=share, test=0.1) for share in (0.1, 0.2))
    assert set(some["validation"]) < set(more["validation"])
    assert (some["test"] == more["test"]).all()
    other = split_by_hash(HASHES, seed=2, validation=0.1, test=0.1)
    shared = set(some["validation"]) & set(other["validation"])
    assert len(shared) == pytest.approx(50, abs=30)


@pytest.mark.parametrize("num", [2, 3, 9])
def test_no_part_of_few_images_is_empty(num):
    """The image that is nearest, with its duplicates."""
    several = np.concatenate([HASHES[:num], HASHES[:num]])
    parts = split_by_hash(several, seed=0, validation=1e-9, test=1e-9 if num > 2 else 0)
    held_out = {part: rows.tolist() for part, rows in parts.items() if part != "train"}
    assert all(len(rows) == 2 and rows[1] == rows[0] + num for rows in held_out.values())
    assert len(parts["train"]) == 2 * (num - len(held_out))
    first = split_by_hash(several, seed=0, validation=0.5)["validation"]
    assert set(held_out["validation"]) <= set(first) or not len(first)
    assert not len(split_by_hash(several, seed=0, validation=1e-9, fill=False)["validation"])


def test_an_encoding_of_another_version_is_refused(tmp_path, rgb, processor):
    np.save(tmp_path / "a.npy", rgb)
    encode(tmp_path / "a.npy", tmp_path / "out", processor)
    manifest = tmp_path / "out" / "encoding.json"
    manifest.write_text(manifest.read_text().replace(f'  "format_version": {ENCODING_FORMAT},\n', ""))
    for use in (EncodedDataset, lambda out: encode(tmp_path / "a.npy", out, processor)):
        with pytest.raises(ValueError, match=f"has format version an older one, this imagegpt reads {ENCODING_FORMAT}"):
            use(tmp_path / "out")


def test_hashes_travel_with_ids(tmp_path, rgb, processor, save):
    save(src={f"{index:02d}.png": image for index, image in enumerate(rgb[:5])})
    (tmp_path / "src" / "02.png").write_bytes(b"x")
    encode(tmp_path / "src", tmp_path / "out", processor, max_broken=0.5)
    encoded = EncodedDataset(tmp_path / "out")
    assert encoded.hashes.dtype == np.uint64
    assert encoded.hashes.tolist() == [pixel_hash(rgb[index]) for index in (0, 1, 3, 4)]


def test_grey_levels_are_hashed_as_their_pictures():
    digits = open_images("digits", split="test")
    assert pixel_hashes(digits).hashes[0] == pixel_hash(digits[0].image)
    assert ColorPalette.grey(17).num_colors == 17
