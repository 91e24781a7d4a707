"""Reading and writing of TensorFlow checkpoints without TensorFlow, and errors for damaged ones."""

import random
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from imagegpt.checkpoints import leveldb
from imagegpt.checkpoints.leveldb import masked_crc32c, read_table, write_table
from imagegpt.checkpoints.protobuf import write_varint
from imagegpt.checkpoints.tensor_bundle import read_bundle, shard_path, write_bundle

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "tf-checkpoints"
TYPES = [
    "float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool",
    "complex64", "complex128",
]  # fmt: skip


def arrays_of_all_types():
    rng = np.random.default_rng(0)
    arrays = {name: (100 * rng.standard_normal((3, 5))).astype(name) for name in TYPES}
    arrays["bfloat16"] = rng.standard_normal((4, 2)).astype(ml_dtypes.bfloat16)
    arrays["a/scalar"] = np.float32(2.5)
    arrays["an/empty/one"] = np.zeros((0, 3), np.float32)
    arrays["naïve name"] = np.arange(7, dtype=np.int64)
    return {name: np.asarray(array) for name, array in arrays.items()}


def same(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@pytest.fixture
def written(tmp_path):
    write_bundle(tmp_path / "model.ckpt-7", arrays_of_all_types(), num_shards=3)
    return tmp_path / "model.ckpt-7"


@pytest.mark.parametrize("num_shards", [1, 2, 32])
def test_bundle_round_trip(tmp_path, num_shards):
    arrays = arrays_of_all_types()
    write_bundle(tmp_path / "b", arrays, num_shards)
    assert len(list(tmp_path.iterdir())) == num_shards + 1
    bundle = read_bundle(tmp_path / "b")
    assert set(bundle) == arrays.keys()
    assert len(bundle) == len(arrays)
    assert all(same(bundle[name], array) for name, array in arrays.items())
    assert bundle.entry("bfloat16").nbytes == 16
    assert list(read_bundle(str(tmp_path / "b.index"))) == list(bundle)


def test_non_contiguous_arrays(tmp_path):
    array = np.arange(24, dtype=">f4").reshape(4, 6)
    write_bundle(tmp_path / "b", {"x": array.T[::-1], "y": array})
    bundle = read_bundle(tmp_path / "b")
    np.testing.assert_array_equal(bundle["x"], array.T[::-1])
    assert bundle["y"].dtype == np.dtype("<f4")


def test_arrays_are_read_only(written):
    with pytest.raises(ValueError, match="read-only"):
        read_bundle(written)["float32"][0, 0] = 1


def test_tables_of_many_entries():
    entries = {f"key {random.Random(k).random()} {k % 7}".encode(): b"v" * (k % 300) for k in range(2000)}
    assert read_table(write_table(entries)) == entries
    assert list(read_table(write_table(entries))) == sorted(entries)
    assert read_table(write_table({})) == {}


def test_checksum_matches_specification():
    """RFC 3720, B.4: 32 zeros have the CRC-32C 8A9136AA."""
    crc = 0x8A9136AA
    assert masked_crc32c(bytes(32)) == ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF


@pytest.mark.parametrize(
    ("folder", "prefix", "num"),
    [
        ("serving/saved_model_half_plus_two_cpu", "variables", None),
        ("serving/saved_model_half_plus_two_mkl", "variables", None),
        ("serving/saved_model_half_plus_two_tf2_cpu", "variables", None),
        ("two-shard", "variables", 67),
    ],
)
def test_checkpoints_written_by_tensorflow(folder, prefix, num):
    if not (SHARED / folder).is_dir():
        pytest.skip(f"{SHARED} is not there")
    bundle = read_bundle(SHARED / folder / prefix)
    if num is not None:
        assert len(bundle) == num
    read = {name: bundle[name] for name in bundle if bundle.entry(name).dtype is not None}
    assert read
    assert all(np.isfinite(array).all() for array in read.values() if array.dtype.kind == "f")
    if "half_plus_two" in folder:
        values = {array.item() for array in read.values() if array.size == 1 and array.dtype.kind == "f"}
        assert {0.5, 2.0} <= values


def test_an_index_without_its_data_can_be_listed():
    prefix = SHARED / "gpt2-124M-index" / "model.ckpt"
    if not prefix.with_name("model.ckpt.index").is_file():
        pytest.skip(f"{SHARED} is not there")
    bundle = read_bundle(prefix)
    assert len(bundle) == 148
    assert bundle.entry("model/wte").shape == (50257, 768)
    with pytest.raises(FileNotFoundError, match=r"data-00000-of-00001 is missing, one of the 1 data files"):
        bundle["model/wte"]


@pytest.mark.parametrize("suffix", ["data-00001-of-00003", "index"])
def test_a_missing_file_is_named(written, suffix):
    written.with_name(f"{written.name}.{suffix}").unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(suffix) if "data" in suffix else "index is missing"):
        dict(read_bundle(written))


def test_a_file_that_is_cut_short_is_named(written):
    path = shard_path(written, 0, 3)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"data-00000-of-00003 has \d+ bytes, but .* it is cut short"):
        dict(read_bundle(written))


@pytest.mark.parametrize("length", [0, 20, 47, 100])
def test_an_index_that_is_cut_short(written, length):
    path = written.with_name(written.name + ".index")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="is not the index of a TensorFlow checkpoint, or is damaged"):
        read_bundle(written)


def flipped(content, bit):
    out = bytearray(content)
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


def read_all(prefix):
    """Read a whole checkpoint; return None if it is reported as damaged."""
    try:
        return dict(read_bundle(prefix))
    except (ValueError, FileNotFoundError):
        return None


def test_flipped_index_bits_are_detected_or_harmless(tmp_path):
    arrays = {"a": np.arange(3, dtype=np.float32), "b/c": np.ones((2, 2), np.int8)}
    write_bundle(tmp_path / "b", arrays)
    path = tmp_path / "b.index"
    content = path.read_bytes()
    harmless = 0
    for bit in range(8 * len(content)):
        path.write_bytes(flipped(content, bit))
        read = read_all(tmp_path / "b")
        harmless += read is not None
        assert read is None or (read.keys() == arrays.keys() and all(same(read[name], arrays[name]) for name in arrays))
    assert harmless < 8 * (48 + 13)  # the padding of the footer, the empty block, and where that is


def test_flipped_data_bits_are_detected(written):
    rng = random.Random(0)
    contents = {shard: shard_path(written, shard, 3).read_bytes() for shard in range(3)}
    for _ in range(300):
        shard = rng.randrange(3)
        path = shard_path(written, shard, 3)
        path.write_bytes(flipped(contents[shard], rng.randrange(8 * len(contents[shard]))))
        with pytest.raises(ValueError, match=r"the checksum of .* is wrong: it is damaged"):
            dict(read_bundle(written))
        path.write_bytes(contents[shard])


@pytest.mark.slow
def test_garbage_never_crashes(tmp_path):
    """10,000 indexes with valid checksums and corrupted contents: an array or a one-sentence error."""
    rng = random.Random(1)
    write_bundle(tmp_path / "b", arrays_of_all_types())
    path = tmp_path / "b.index"
    table = read_table(path.read_bytes())
    for _ in range(10_000):
        wrong = dict(table)
        for key in rng.sample(sorted(wrong), 2):
            value = bytearray(wrong.pop(key))
            for _ in range(rng.randrange(1, 4)):
                at = rng.randrange(len(value) + 1)
                value[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(4))
            wrong[key] = bytes(value)
        path.write_bytes(write_table(wrong))
        read_all(tmp_path / "b")


@pytest.mark.parametrize(
    ("arrays", "num_shards", "message"),
    [
        ({"x": np.array(["text"])}, 1, "x is of type <U4: TensorFlow checkpoints support float32"),
        ({"": np.zeros(1)}, 1, "'' is not a valid name for a variable"),
        ({"x": np.zeros(1)}, 0, "num_shards is 0: it must be an integer from 1 to 99,999"),
    ],
)
def test_write_errors(arrays, num_shards, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        write_bundle(tmp_path / "b", arrays, num_shards)
    assert not list(tmp_path.iterdir())


def test_failed_write_keeps_existing_files(written, monkeypatch):
    before = {path: path.read_bytes() for path in written.parent.iterdir()}
    monkeypatch.setattr(
        "imagegpt.checkpoints.tensor_bundle.write_table", lambda _: (_ for _ in ()).throw(OSError("full"))
    )
    with pytest.raises(OSError, match="full"):
        write_bundle(written, {"x": np.zeros(9)}, 3)
    assert {path: path.read_bytes() for path in written.parent.iterdir()} == before


def test_index_expansion_is_limited(tmp_path, monkeypatch):
    """Regression: with shared key prefixes, 240 kB expanded to 1.1 GB of keys."""
    for name in ("_BLOCK_BYTES", "_RESTART_INTERVAL"):
        monkeypatch.setattr(leveldb, name, 1 << 30)
    content = write_table({b"n" * 14_000 + b"%06d" % number: b"" for number in range(1_000)})
    assert len(content) < 50_000
    (tmp_path / "x.index").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"x.index is not the index .*, or is damaged \(its [\d,]+ bytes expand to more than"
    ):
        read_bundle(tmp_path / "x")


def test_overlapping_variables_are_an_error(tmp_path):
    """Regression: a small file could describe any number of large variables."""
    write_bundle(tmp_path / "x", {"a": np.zeros(100, np.float32), "b": np.zeros(100, np.float32)})
    table = read_table((tmp_path / "x.index").read_bytes())
    write = {**table, b"b": table[b"a"]}
    (tmp_path / "x.index").write_bytes(write_table(write))
    with pytest.raises(ValueError, match=r"x.index is not the index .*, or is damaged \(its variables overlap\)"):
        read_bundle(tmp_path / "x")


def test_overlapping_variables_after_a_gap_are_an_error(tmp_path):
    """Regression: an entry with a distant offset hid the overlap of the others."""
    write_bundle(tmp_path / "x", {name: np.zeros(100, np.float32) for name in "abcd"})
    path = tmp_path / "x.index"
    table = read_table(path.read_bytes())
    far = table[b"d"].replace(b"\x20\xb0\x09", b"\x20" + write_varint(1 << 50))  # field 4, the offset, from 1,200
    assert far != table[b"d"]
    path.write_bytes(write_table({**table, b"b": table[b"a"], b"c": table[b"a"], b"d": far}))
    with pytest.raises(ValueError, match=r"damaged \(its variables overlap\)"):
        read_bundle(tmp_path / "x")


def test_an_index_of_terabytes_is_not_read(tmp_path):
    with (tmp_path / "x.index").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=r"damaged \(it has 1,099,511,627,776 bytes, more than 67,108,864\)"):
        read_bundle(tmp_path / "x")


def test_variables_in_slices_are_refused(tmp_path):
    write_bundle(tmp_path / "x", {"a": np.zeros((), np.float32)})
    path = tmp_path / "x.index"
    table = read_table(path.read_bytes())
    table[b"a"] += b"\x3a\x00"
    path.write_bytes(write_table(table))
    with pytest.raises(ValueError, match=r"damaged \('a' was saved in slices, which OpenAI's variables are not\)"):
        read_bundle(tmp_path / "x")
