"""The cache of compiled kernels: damaged libraries are recompiled, never loaded."""

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
    """Flip bits after the header."""
    damaged = bytearray(content)
    places = [rng.randrange(64, len(damaged)) for _ in range(rng.choice((1, 3, 100)))]
    for case_folder in places:
        damaged[case_folder] ^= 1 << rng.randrange(8)
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
        """Build a library that compiles fast."""
        (self.folder / "answer" / "cpp").mkdir(parents=True)
        (self.folder / "answer" / "cpp" / "answer.cpp").write_text(_SOURCE)
        self.open(self.folder / "answer")

    def mutate(self, case_folder: Path, rng: Random) -> Mutant:
        """Damage bytes or files, or change write permissions."""
        if rng.random() < 0.9:
            return super().mutate(case_folder, rng)
        mutant = super().mutate(case_folder, rng)
        path = rng.choice(
            [path for path in (case_folder / "kernels").rglob("*") if path.exists()] + [case_folder / "kernels"]
        )
        mode = rng.choice((0o777, 0o602, 0o000, 0o400))
        path.chmod(mode)
        return Mutant(
            original=mutant.original, change=f"{mutant.change}, {path.name} has mode {mode:o}", keeps_structure=False
        )

    def is_damaged(self, path: Path) -> bool:
        """Everything but the source."""
        return path.parent.name == "kernels"

    def passes_first_parser(self, case_folder: Path) -> bool:
        """See `first_parser`."""
        return any(path.read_bytes()[:4] == b"\x7fELF" for path in (case_folder / "kernels").glob("*.so"))

    def open(self, case_folder: Path) -> str:
        """Find or build it, and call it."""
        compiler._SOURCES = case_folder / "cpp"
        path = find_or_build(_ANSWER, case_folder / "kernels")
        return str(ctypes.CDLL(str(path)).answer())
