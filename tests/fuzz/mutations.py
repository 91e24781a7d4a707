"""Generic damage, to bytes, files, and the values in JSON and YAML."""

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
_MAX_BYTES = 1 << 21  # longer mutants are cut off

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 256, 65_536, 200_000, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, 0.0,
    -0.0, 0.5,
    1e-320, 1e308, float("inf"), float("-inf"), float("nan"), "", "x", "0", "1e5", "true", "null", "auto", "\0", "\n",
    "é",
    "\ud800", "../../x", "/etc/passwd", "C:\\x", "[bold]", "$HOME", "%s{0}", "a" * 10_000, [], {}, [[]], [None], {"":
    None},
    [0] * 5_000, {"x": {"y": {"z": []}}}, [1, "x", None, 2.5], {"__class__": "x"},
)  # fmt: skip
_ADDED = (
    "extra",
    "auto_map",
    "dtype",
    "_name_or_path",
    "format_version",
    "to_dict",
    "__dict__",
    "attribute_map",
)  # keys
DEEP = "@@deeply nested@@"


def damage_bytes(content: bytes, rng: Random) -> tuple[bytes, str]:
    """Flip, cut, splice, repeat or overwrite bytes of a file; return a description."""
    damaged = bytearray(content)
    done = [rng.choice(_BYTES)(damaged, rng) for _ in range(rng.choice((1, 1, 1, 2, 4)))]
    return bytes(damaged[:_MAX_BYTES]), ", ".join(done)


def _flip(content: bytearray, rng: Random) -> str:
    if not content:
        return _insert(content, rng)
    places = [rng.randrange(len(content)) for _ in range(rng.choice((1, 1, 3, 20)))]
    for case_folder in places:
        content[case_folder] ^= 1 << rng.randrange(8)
    return f"{len(places)} bits flipped, the first in byte {places[0]}"


def _flip_near_start(content: bytearray, rng: Random) -> str:
    if not content:
        return _insert(content, rng)
    case_folder = rng.randrange(min(len(content), 64))
    content[case_folder] = rng.randrange(256)
    return f"byte {case_folder} changed"


def _truncate(content: bytearray, rng: Random) -> str:
    length = rng.randrange(len(content) + 1)
    del content[length:]
    return f"cut to {length} bytes"


def _remove(content: bytearray, rng: Random) -> str:
    start = rng.randrange(len(content) + 1)
    end = min(len(content), start + rng.choice((1, 4, 100, 5000)))
    del content[start:end]
    return f"bytes {start} to {end} removed"


def _insert(content: bytearray, rng: Random) -> str:
    case_folder, length = rng.randrange(len(content) + 1), rng.choice((1, 4, 100, 5000))
    content[case_folder:case_folder] = rng.choice((bytes(length), rng.randbytes(length), b"\xff" * length))
    return f"{length} bytes inserted at {case_folder}"


def _splice(content: bytearray, rng: Random) -> str:
    start, case_folder = rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)
    part = content[start : start + rng.choice((4, 64, 1000))]
    content[case_folder : case_folder + len(part)] = part
    return f"{len(part)} bytes of {start} copied to {case_folder}"


def _overwrite_number(content: bytearray, rng: Random) -> str:
    """Overwrite 1 to 8 bytes, in either byte order, mostly near the start, where length fields are."""
    code = rng.choice(("B", "<H", ">H", "<I", ">I", "<Q", ">Q"))
    size = struct.calcsize(code)
    if len(content) < size:
        return _insert(content, rng)
    most = len(content) - size + 1
    case_folder = rng.randrange(min(most, 256) if rng.random() < 0.7 else most)
    number = rng.choice((*_NUMBERS, len(content), len(content) + 1, rng.randrange(1 << 16))) % (1 << 8 * size)
    content[case_folder : case_folder + size] = struct.pack(code, number)
    return f"{number} as {code} at {case_folder}"


def _append(content: bytearray, rng: Random) -> str:
    more = rng.choice((b"\0", b"\n", bytes(content[:1000]), rng.randbytes(1000)))
    content += more
    return f"{len(more)} bytes appended"


_BYTES = (
    _flip,
    _flip,
    _flip_near_start,
    _truncate,
    _remove,
    _insert,
    _splice,
    _overwrite_number,
    _overwrite_number,
    _append,
)


def misplace(path: Path, others: list[Path], rng: Random) -> str:
    """Remove or empty a file, or replace it by another file or by something that is not a file."""
    how = rng.choice(
        ("removed", "emptied", "swapped", "folder", "link to itself", "link to nothing", "unreadable name")
    )
    if how == "emptied":
        path.write_bytes(b"")
        return how
    if how == "swapped":
        other = rng.choice(others)
        content = other.read_bytes()
        path.write_bytes(content)
        return f"replaced by {other.name}"
    path.unlink()
    if how == "folder":
        path.mkdir()
        (path / "x").write_bytes(b"x")
    elif how == "link to itself":
        path.symlink_to(path.name)
    elif how == "link to nothing":
        path.symlink_to("nothing/here")
    elif how == "unreadable name":
        Path(os.fsdecode(os.fsencode(path) + b"\xff")).write_bytes(b"x")
    return how


def damage_json(content: bytes, rng: Random) -> tuple[bytes, str]:
    """Change a value, a key or the nesting in JSON, which remains valid."""
    tree, change = damage_tree(json.loads(content), rng)
    text = json.dumps(tree)
    if DEEP in text:
        depth = rng.choice((100, 1_000, 100_000))
        text = text.replace(f'"{DEEP}"', "[" * depth + "]" * depth)
    return text.encode(), change


def damage_tree(tree: Any, rng: Random) -> tuple[Any, str]:
    """Change nested lists and dictionaries in one or a few places."""
    done = []
    for _ in range(rng.choice((1, 1, 1, 1, 2, 5))):
        places = list(_places(tree))
        if not places or rng.random() < 0.02:
            return rng.choice(ODD_VALUES), "the whole replaced"
        holder, key, path = rng.choice(places)
        done.append(f"{path} {_change(holder, key, rng)}")
    return tree, ", ".join(done)


def _change(holder: Any, key: Any, rng: Random) -> str:
    how = rng.choice(
        ("odd", "odd", "odd", "odd", "near", "near", "removed", "renamed", "wrapped", "deep", "added", "swapped")
    )
    value = holder[key]
    if how == "near" and isinstance(value, int | float) and not isinstance(value, bool):
        holder[key] = rng.choice((value + 1, value - 1, -value, 2 * value, value * 1000, value + 0.5, str(value)))
    elif how == "near" and isinstance(value, str):
        case_folder = rng.randrange(len(value) + 1)
        holder[key] = rng.choice(
            (value[:case_folder], value + "x", value.upper(), value[:case_folder] + "\0" + value[case_folder:], [value])
        )
    elif how == "removed":
        del holder[key]
        return how
    elif how == "renamed" and isinstance(holder, dict):
        holder[rng.choice((f"{key}s", str(key).upper(), "", "__class__"))] = holder.pop(key)
        return how
    elif how == "wrapped":
        holder[key] = rng.choice(([value], {"x": value}, [value, value]))
    elif how == "deep":
        holder[key] = DEEP
    elif how == "added" and isinstance(holder, dict):
        added = rng.choice(_ADDED)
        holder[added] = rng.choice(ODD_VALUES)
        return f"gets {added} {holder[added]!r:.60} beside it"
    elif how == "swapped":
        other = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        holder[key], holder[other] = holder[other], holder[key]
    else:
        holder[key] = rng.choice(ODD_VALUES)
    return f"is {holder[key]!r:.60}" if isinstance(holder, list) or key in holder else how


def _places(tree: Any, path: str = "") -> Iterator[tuple[Any, Any, str]]:
    """Yield every value in nested lists and dictionaries: its container, its key, and its path."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        here = f"{path}.{key}".strip(".")
        yield tree, key, here
        if isinstance(value, dict) or (isinstance(value, list) and len(value) <= 64):
            yield from _places(value, here)
