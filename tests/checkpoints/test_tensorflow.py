"""Round trips with TensorFlow itself, bit for bit.

It is no dependency. Where a Python that has it is at hand:

    IMAGEGPT_TENSORFLOW=/path/to/python pytest -m slow tests/checkpoints/test_tensorflow.py
"""

import json
import os
import subprocess

import ml_dtypes
import numpy as np
import pytest

from imagegpt.checkpoints.tensor_bundle import read_bundle, write_bundle
from openai_oracle import random_variables

PYTHON = os.environ.get("IMAGEGPT_TENSORFLOW")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="IMAGEGPT_TENSORFLOW names no Python with TensorFlow"),
]

# Arrays travel as bytes, by name: numpy's files know no bfloat16.
COMMON = """
import json, sys
import numpy as np
import tensorflow as tf
from tensorflow.raw_ops import MergeV2Checkpoints, SaveV2

def load(path):
    table = json.load(open(path + ".json"))
    content = open(path, "rb").read()
    arrays = {}
    for name, (kind, shape, start, end) in table.items():
        dtype = tf.as_dtype(kind).as_numpy_dtype
        arrays[name] = np.frombuffer(content[start:end], dtype).reshape(shape)
    return arrays

def dump(path, arrays):
    table, content = {}, b""
    for name, array in arrays.items():
        table[name] = [array.dtype.name, array.shape, len(content), len(content) + array.nbytes]
        content += array.tobytes()
    open(path, "wb").write(content)
    json.dump(table, open(path + ".json", "w"))
"""
WRITE = """
arrays, prefix, num_shards = load(sys.argv[1]), sys.argv[2], int(sys.argv[3])
names = sorted(arrays)
parts = []
for shard in range(num_shards):
    mine = names[shard::num_shards]
    part = f"{prefix}_part{shard}"
    tensors, slices, saved = [], [], []
    for name in mine:
        array = arrays[name]
        saved.append(name), slices.append(""), tensors.append(tf.constant(array))
    SaveV2(prefix=part, tensor_names=saved, shape_and_slices=slices, tensors=tensors)
    parts.append(part)
MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=prefix)
"""
READ = """
reader = tf.train.load_checkpoint(sys.argv[1])
dump(sys.argv[2], {name: np.asarray(reader.get_tensor(name)) for name in reader.get_variable_to_shape_map()})
"""


def tensorflow(script, *arguments):
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [PYTHON, "-c", COMMON + script, *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def dump(path, arrays):
    table, content = {}, b""
    for name, array in arrays.items():
        table[name] = [array.dtype.name, array.shape, len(content), len(content) + array.nbytes]
        content += array.tobytes()
    path.write_bytes(content)
    path.with_name(path.name + ".json").write_text(json.dumps(table))


def load(path):
    table, content = json.loads(path.with_name(path.name + ".json").read_text()), path.read_bytes()
    kinds = {"bfloat16": ml_dtypes.bfloat16}
    return {
        name: np.frombuffer(content[start:end], kinds.get(kind, kind)).reshape(shape)
        for name, (kind, shape, start, end) in table.items()
    }


def arrays_of_all_types():
    rng = np.random.default_rng(0)
    kinds = ["float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
    arrays = {kind: (100 * rng.standard_normal((7, 5))).astype(kind) for kind in kinds}
    arrays |= {"bool": rng.random((3, 3)) < 0.5, "complex64": (rng.random(4) + 1j).astype(np.complex64)}
    arrays |= {"bfloat16": rng.standard_normal((6, 3)).astype(ml_dtypes.bfloat16), "scalar": np.float32(3.5)}
    arrays |= {"empty": np.zeros((0, 4), np.float32), **random_variables()}
    return {name: np.asarray(array) for name, array in arrays.items()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (array.dtype, array.shape), name
        assert ours[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("num_shards", [1, 32])
def test_read_checkpoints_of_tensorflow(tmp_path, num_shards):
    arrays = arrays_of_all_types()
    dump(tmp_path / "arrays", arrays)
    tensorflow(WRITE, tmp_path / "arrays", tmp_path / "model.ckpt", num_shards)
    bundle = read_bundle(tmp_path / "model.ckpt")
    assert bundle.num_shards == num_shards
    assert_same(dict(bundle), arrays)


@pytest.mark.parametrize("num_shards", [1, 32])
def test_tensorflow_reads_our_checkpoints(tmp_path, num_shards):
    arrays = arrays_of_all_types()
    write_bundle(tmp_path / "model.ckpt", arrays, num_shards)
    tensorflow(READ, tmp_path / "model.ckpt", tmp_path / "arrays")
    assert_same(load(tmp_path / "arrays"), arrays)
