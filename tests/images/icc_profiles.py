"""Small ICC profiles, made for tests."""

import struct

# What the primaries are in XYZ, adapted to the white of all profiles.
SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7139))
DISPLAY_P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
WHITE = (0.9642, 1, 0.8249)


def gamma_profile(gamma, space="RGB ", colorants=SRGB):
    """A profile of colours whose curve is a power, or of grey with that curve."""

    def tag(kind, *values):
        return kind + bytes(4) + b"".join(values)

    def fixed(*values):
        return b"".join(struct.pack(">i", round(65_536 * value)) for value in values)

    curve = tag(b"curv", struct.pack(">IH", 1, round(256 * gamma)), b"\0\0")
    tags = {
        b"wtpt": tag(b"XYZ ", fixed(*WHITE)),
        b"desc": tag(b"desc", struct.pack(">I", 2), b"x\0", bytes(79)),
    }
    tags |= {b"cprt": tag(b"text", b"none\0\0\0\0")}
    if space == "RGB ":
        for letter, colorant in zip("rgb", colorants, strict=True):
            tags |= {f"{letter}XYZ".encode(): tag(b"XYZ ", fixed(*colorant)), f"{letter}TRC".encode(): curve}
    else:
        tags[b"kTRC"] = curve
    place, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        table += struct.pack(">4sII", name, place + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", place + len(body), bytes(4), 0x02100000, b"mntr", space.encode(), b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + fixed(*WHITE)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
