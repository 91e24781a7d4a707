"""Damage that keeps the file format valid: checksums, lengths and headers match, the content is wrong."""

import io
import json
import struct
import zipfile
import zlib
from random import Random

import numpy as np

from .cases import Damage
from .mutations import damage_bytes, damage_json

_PNG = b"\x89PNG\r\n\x1a\n"
_SIZES = (0, 1, 2, 7, 24, 39, 41, 255, 65_535, 70_000, 1_000_000, 2**31 - 1)
_ODD_CHUNKS = {
    b"tRNS": (b"", b"\0", b"\xff" * 6, bytes(300)), b"PLTE": (b"", b"\1\2\3", bytes(768), bytes(5)), b"eXIf":
    (b"garbage!", b"MM\0*\0\0\0\x08\xff\xff"),
    b"iCCP": (b"x\0\0" + zlib.compress(b"no profile"), b"x\0\0\1"), b"gAMA": (b"\0\0\0\0", b""), b"tEXt": (b"x",
    b"Raw profile type exif\0\nexif\n8\nzz"),
    b"zTXt": (b"x\0\0" + zlib.compress(bytes(1 << 20)), b"x\0\1"), b"acTL": (b"\xff" * 8,), b"fcTL": (bytes(26),),
    b"sBIT": (b"\0",),
}  # fmt: skip


def damage_png(content: bytes, rng: Random) -> tuple[bytes, str]:
    """Change a chunk and update its checksum."""
    chunks = []
    case_folder = len(_PNG)
    while case_folder + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, case_folder)
        chunks.append((kind, content[case_folder + 8 : case_folder + 8 + length]))
        case_folder += 12 + length
    number = rng.randrange(len(chunks))
    kind, data = chunks[number]
    how = rng.choice(("header", "header", "data", "data", "pixels", "removed", "twice", "moved", "another", "another"))
    if how == "header":
        fields = list(struct.unpack(">IIBBBBB", chunks[0][1]))
        which = rng.randrange(7)
        fields[which] = rng.choice(_SIZES) if which < 2 else rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
        chunks[0] = (b"IHDR", struct.pack(">IIBBBBB", *fields))
    elif how == "data":
        chunks[number] = (kind, damage_bytes(data, rng)[0])
    elif how == "pixels":
        pixels = zlib.decompress(b"".join(data for kind, data in chunks if kind == b"IDAT"))
        packed = zlib.compress(damage_bytes(pixels, rng)[0])
        chunks = [one for one in chunks if one[0] != b"IDAT"]
        chunks.insert(-1, (b"IDAT", packed))
    elif how == "removed":
        del chunks[number]
    elif how == "twice":
        chunks.insert(number, chunks[number])
    elif how == "moved":
        chunks.insert(rng.randrange(len(chunks)), chunks.pop(number))
    else:
        kind = rng.choice(list(_ODD_CHUNKS))
        chunks.insert(rng.randrange(1, len(chunks) + 1), (kind, rng.choice(_ODD_CHUNKS[kind])))
    return _PNG + b"".join(map(_png_chunk, chunks)), f"chunk {kind.decode('latin-1')} {how}"


def _png_chunk(chunk: tuple[bytes, bytes]) -> bytes:
    kind, data = chunk
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def damage_jpeg(content: bytes, rng: Random) -> tuple[bytes, str]:
    """Change a segment before the pixels and update its length."""
    segments, case_folder = [], 2
    while content[case_folder] == 0xFF and content[case_folder + 1] != 0xDA:
        marker, length = struct.unpack_from(">xBH", content, case_folder)
        segments.append((marker, content[case_folder + 4 : case_folder + 2 + length]))
        case_folder += 2 + length
    number = rng.randrange(len(segments))
    marker, data = segments[number]
    how = rng.choice(("data", "data", "data", "removed", "twice", "marker"))
    if how == "data":
        segments[number] = (marker, damage_bytes(data, rng)[0][:65_000])
    elif how == "removed":
        del segments[number]
    elif how == "twice":
        segments.insert(number, segments[number])
    else:
        segments[number] = (rng.choice((0xC0, 0xC1, 0xC2, 0xC4, 0xDB, 0xDD, 0xE1, 0xE2, 0xEE, 0xFE)), data)
    written = [struct.pack(">BBH", 0xFF, one, len(data) + 2) + data for one, data in segments]
    return content[:2] + b"".join(written) + content[case_folder:], f"segment {marker:02X} {how}"


def damage_riff(content: bytes, rng: Random) -> tuple[bytes, str]:
    """Change a chunk of a WebP file and update the lengths."""
    chunks, case_folder = [], 12
    while case_folder + 8 <= len(content):
        kind, length = struct.unpack_from("<4sI", content, case_folder)
        chunks.append((kind, content[case_folder + 8 : case_folder + 8 + length]))
        case_folder += 8 + length + length % 2
    number = rng.randrange(len(chunks))
    kind, data = chunks[number]
    how = rng.choice(("data", "data", "data", "removed", "twice"))
    if how == "data":
        chunks[number] = (kind, damage_bytes(data, rng)[0])
    elif how == "removed":
        del chunks[number]
    else:
        chunks.insert(number, chunks[number])
    written = [kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for kind, data in chunks]
    body = b"WEBP" + b"".join(written)
    return b"RIFF" + struct.pack("<I", len(body)) + body, f"chunk {kind.decode('latin-1')} {how}"


def damage_tiff(content: bytes, rng: Random) -> tuple[bytes, str]:
    """Change an entry of the first directory."""
    (start,) = struct.unpack_from("<I", content, 4)
    (num,) = struct.unpack_from("<H", content, start)
    case_folder = start + 2 + 12 * rng.randrange(num)
    tag, kind, count, value = struct.unpack_from("<HHII", content, case_folder)
    fields = [tag, kind, count, value]
    which = rng.choice((1, 2, 3, 3, 3))
    fields[which] = rng.choice(range(14) if which == 1 else (0, 1, 3, value + 1, 65_535, 70_000, 2**31, 2**32 - 1))
    damaged = bytearray(content)
    struct.pack_into("<HHII", damaged, case_folder, *fields)
    return bytes(damaged), f"tag {tag} has type {fields[1]}, count {fields[2]}, value {fields[3]}"


def damage_safetensors(content: bytes, rng: Random) -> tuple[bytes, str]:
    """Change the header, which remains valid JSON of the stated length, or the numbers after it."""
    (length,) = struct.unpack_from("<Q", content)
    header, data = content[8 : 8 + length], content[8 + length :]
    how = rng.choice(("tree", "tree", "type", "shape", "offsets", "numbers"))
    if how == "numbers":
        values = np.frombuffer(data, np.float32).copy()
        values[rng.randrange(len(values))] = rng.choice((np.nan, np.inf, 1e38, 0))
        return content[: 8 + length] + values.tobytes(), "a number changed"
    if how == "tree":
        header, change = damage_json(header, rng)
    else:
        fields = json.loads(header)
        name = rng.choice([name for name in fields if name != "__metadata__"])
        entry = fields[name]
        if how == "type":
            entry["dtype"] = rng.choice(
                ("F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64", "E8M0", "X", "")
            )
        elif how == "shape":
            entry["shape"] = rng.choice(
                ([], [0], [-1], [2**40, 2**40], entry["shape"][::-1], [*entry["shape"], 1], entry["shape"][:-1])
            )
        else:
            start, end = entry["data_offsets"]
            entry["data_offsets"] = rng.choice(
                ([end, start], [0, 0], [start, end + 4], [start - 4, end], [0, 2**63], [start, len(data) * 2])
            )
        header, change = json.dumps(fields).encode(), f"{how} of {name}"
    return struct.pack("<Q", len(header)) + header + data, f"header: {change}"


def damage_npy(content: bytes, rng: Random) -> tuple[bytes, str]:
    """Change shape, type or order in the header, or the numbers after it."""
    array = np.load(io.BytesIO(content))
    shape, types = (
        array.shape,
        ("<f4", "<f8", ">f4", "<f2", "|u1", "<i8", "|b1", "<c8", "|S4", "<U4", "|O", "<M8[s]", "|V3", "[('a', '<f4')]"),
    )
    descr, order, data = array.dtype.str, False, array.tobytes()
    how = rng.choice(("shape", "shape", "type", "order", "numbers", "more", "fewer"))
    if how == "shape":
        shape = rng.choice(
            (
                (),
                (0,),
                (*shape, 1),
                shape[::-1],
                (2**62,),
                (-1, 3),
                (10**6, 10**6),
                shape[1:],
                (shape[0] * 1000, *shape[1:]),
            )
        )
    elif how == "type":
        descr = rng.choice(types)
    elif how == "order":
        order = True
    elif how == "numbers" and array.size:
        changed = array.copy().reshape(-1)
        changed[rng.randrange(changed.size)] = (
            rng.choice((0, 1, 255)) if array.dtype.kind in "iu" else rng.choice((np.nan, np.inf, -2.0))
        )
        data = changed.tobytes()
    elif how == "more":
        data += bytes(100)
    else:
        data = data[: len(data) // 2]
    field = descr if descr.startswith("[") else repr(descr)
    header = f"{{'descr': {field}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + data, f"{how}: {header[:80].decode()}"


def damage_npz(content: bytes, rng: Random) -> tuple[bytes, str]:
    """Change, add or remove an array of an .npz file; checksums and lengths match."""
    return _damage_zip(content, rng, damage_npy)


def damage_pickled(content: bytes, rng: Random) -> tuple[bytes, str]:
    """Change a file in an archive of torch.save; checksums and lengths match."""
    return _damage_zip(content, rng, damage_bytes)


def _damage_zip(content: bytes, rng: Random, damage: Damage) -> tuple[bytes, str]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(members))
    how = rng.choice(("member", "member", "member", "bytes", "removed", "renamed", "added", "bomb"))
    packing = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    if how == "member":
        members[name], change = damage(members[name], rng)
        how = f"{how} {change}"
    elif how == "bytes":
        members[name] = damage_bytes(members[name], rng)[0]
    elif how == "removed":
        del members[name]
    elif how == "renamed":
        members[rng.choice(("x.npy", "../x.npy", "/x.npy", "images", "labels.npy", "\xff.npy"))] = members.pop(name)
    elif how == "added":
        members[rng.choice(("x.npy", "readme.txt"))] = b"x"
    else:
        members[name], packing = members[name][:128] + bytes(50_000_000), zipfile.ZIP_DEFLATED
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packing) as archive:
        for one, data in members.items():
            archive.writestr(one, data)
    return file.getvalue(), f"{name} {how}"
