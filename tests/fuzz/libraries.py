"""The cache of compiled kernels: what is damaged is compiled again, and never loaded."""

import ctypes
from pathlib import Path
from random import Random
from typing import ClassVar

from imagegpt.kernels import compiler
from imagegpt.kernels.compiler import Library, find_or_build

from .cases import Kind, Mutant

_ANSWER = Library(name="answer", defines=(("ANSWER", 42),))
_SOURCE = 'extern "C" int answer() { return ANSWER; }\n'


def damage_code(content: bytes, rng: Random) -> tuple[bytes, str]:
    """Flip bits behind the header."""
    damaged = bytearray(content)
    places = [rng.randrange(64, len(damaged)) for _ in range(rng.choice((1, 3, 100)))]
    for place in places:
        damaged[place] ^= 1 << rng.randrange(8)
    return bytes(damaged), f"{len(places)} bits flipped, the first in byte {places[0]}"


class Libraries(Kind):
    """Cached libraries, with their checksums and locks."""

    name = "libraries"
    num_cases = 100
    first_parser = "the library still begins as an ELF file"
    has_manifest = True
    imports = ("imagegpt.kernels.compiler",)
    formats: ClassVar = {".so": damage_code}

    def prepare(self) -> None:
        """A library that is compiled in no time."""
        (self.folder / "answer" / "cpp").mkdir(parents=True)
        (self.folder / "answer" / "cpp" / "answer.cpp").write_text(_SOURCE)
        self.open(self.folder / "answer")

    def mutate(self, place: Path, rng: Random) -> Mutant:
        """Damage bytes or files as of all kinds, or who may write them."""
        if rng.random() < 0.9:
            return super().mutate(place, rng)
        mutant = super().mutate(place, rng)
        path = rng.choice([path for path in (place / "kernels").rglob("*") if path.exists()] + [place / "kernels"])
        mode = rng.choice((0o777, 0o602, 0o000, 0o400))
        path.chmod(mode)
        return Mutant(
            original=mutant.original, change=f"{mutant.change}, {path.name} has mode {mode:o}", keeps_structure=False
        )

    def is_damaged(self, path: Path) -> bool:
        """Not the source."""
        return path.parent.name == "kernels"

    def passes_first_parser(self, place: Path) -> bool:
        """See `first_parser`."""
        return any(path.read_bytes()[:4] == b"\x7fELF" for path in (place / "kernels").glob("*.so"))

    def open(self, place: Path) -> str:
        """Find or build it, and call it."""
        compiler._SOURCES = place / "cpp"
        path = find_or_build(_ANSWER, place / "kernels")
        return str(ctypes.CDLL(str(path)).answer())
