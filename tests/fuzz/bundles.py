"""TensorFlow checkpoints of OpenAI's models: an index with checksums, and data files."""

import hashlib
from pathlib import Path
from random import Random
from typing import ClassVar

import numpy as np

from imagegpt.checkpoints.leveldb import read_table, write_table
from imagegpt.checkpoints.listing import list_tensors
from imagegpt.checkpoints.openai import from_openai
from imagegpt.checkpoints.protobuf import read_fields, write_fields
from imagegpt.checkpoints.tensor_bundle import read_bundle, write_bundle

from .cases import Kind
from .mutations import damage_bytes

_NUMBERS = (0, 1, 2, 3, 5, 7, 14, 19, 23, 64, 1000, 2**31, 2**40, 2**62, 2**63, 2**64 - 1)


def damage_index(content: bytes, rng: Random) -> tuple[bytes, str]:
    """Change an entry of the index and update the checksums of its blocks."""
    entries = read_table(content)
    key = rng.choice(list(entries))
    how = rng.choice(("field", "field", "field", "field", "bytes", "removed", "renamed", "swapped", "added"))
    if how == "field":
        entries[key], change = _other_fields(entries[key], rng)
        how = f"{how} {change}"
    elif how == "bytes":
        entries[key] = damage_bytes(entries[key], rng)[0]
    elif how == "removed":
        del entries[key]
    elif how == "renamed":
        entries[rng.choice((b"x", b"model/x", key + b"\0", key[:-1], b"\xff" * 20))] = entries.pop(key)
    elif how == "swapped":
        other = rng.choice(list(entries))
        entries[key], entries[other] = entries[other], entries[key]
    else:
        entries[key + b"/Adam"] = entries[key]
    return write_table(entries), f"{key.decode()}: {how}"


def _other_fields(message: bytes, rng: Random) -> tuple[bytes, str]:
    """Change a field of a message, or of a nested message."""
    fields = list(read_fields(message))
    if not fields:
        return write_fields([(rng.randrange(1, 10), rng.choice(_NUMBERS))]), "was empty"
    case_folder = rng.randrange(len(fields))
    number, value = fields[case_folder]
    how = rng.choice(("value", "value", "value", "number", "twice", "removed"))
    if how == "value" and isinstance(value, bytes):
        try:
            value = _other_fields(value, rng)[0]
        except ValueError:  # not a message
            value = damage_bytes(value, rng)[0]
        fields[case_folder] = number, value
    elif how == "value":
        fields[case_folder] = number, rng.choice(_NUMBERS)
    elif how == "number":
        fields[case_folder] = rng.randrange(1, 12), value
    elif how == "twice":
        fields.append(fields[case_folder])
    else:
        del fields[case_folder]
    return write_fields(fields), f"{number} {how}"


class Bundles(Kind):
    """TensorFlow checkpoints of OpenAI's code."""

    name = "bundles"
    num_cases = 1_000
    first_parser = "the index is a table with checksums that fit"
    imports = ("imagegpt.checkpoints.listing", "imagegpt.checkpoints.openai", "crc32c", "cramjam")
    formats: ClassVar = {".index": damage_index}

    def prepare(self) -> None:
        """Write random models in one data file and in three."""
        for name, num_shards, dtype in (("one", 1, np.float32), ("three", 3, np.float16)):
            (self.folder / name).mkdir()
            arrays = {key: array.astype(dtype) for key, array in variables().items()}
            write_bundle(self.folder / name / "model.ckpt-7", {**arrays, "global_step": np.int64(7)}, num_shards)

    def passes_first_parser(self, case_folder: Path) -> bool:
        """See `first_parser`."""
        read_table((case_folder / "model.ckpt-7.index").read_bytes())
        return True

    def open(self, case_folder: Path) -> str:
        """List the variables, and read all of them as `imagegpt convert openai` does."""
        assert list_tensors(str(case_folder / "model.ckpt-7")) is not None
        found = from_openai(read_bundle(case_folder / "model.ckpt-7"), biases=True)
        digest = hashlib.sha256()
        for name, tensor in sorted(found.weights.items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        return digest.hexdigest()


def variables(num_layers: int = 2, num_heads: int = 2, width: int = 8, num_colors: int = 11) -> dict[str, np.ndarray]:
    """Random variables with OpenAI's names."""
    rng = np.random.default_rng(0)
    shapes = {
        "wte": (num_colors, width),
        "wpe": (16, width),
        "wtet": (num_colors, width),
        "ln_f/g": (width,),
        "sos": (width,),
    }
    for layer in range(num_layers):
        shapes |= {
            f"h{layer}/attn/{name}": (num_heads, width // num_heads, width)
            for name in ("q_proj", "k_proj", "v_proj", "c_proj")
        }
        shapes |= {f"h{layer}/mlp/c_fc/w": (width, 4 * width), f"h{layer}/mlp/c_proj/w": (4 * width, width)}
        shapes |= {f"h{layer}/ln_{number}/g": (width,) for number in (1, 2)}
    return {f"model/{name}": rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
