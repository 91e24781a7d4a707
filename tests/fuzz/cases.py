"""What a kind of input has to say of itself, and what can become of a case."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import ClassVar

from . import mutations

ACCEPTED, REFUSED = "accepted", "refused"
FOREIGN, CRASH, HANG, MEMORY = "foreign exception", "crash", "hang", "memory"
SILENT, EXIT, FUZZER = "silent difference", "exit or stderr", "mistake in the fuzzer"
FAILURES = (FOREIGN, CRASH, HANG, MEMORY, SILENT, EXIT, FUZZER)

Damage = Callable[[bytes, Random], tuple[bytes, str]]


class WrongEndError(Exception):
    """A command that ended in a way that no command should."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """What was done to an original.

    Attributes:
        original: its name.
        change: a line for people.
        keeps_structure: whether its format is whole: checksums, lengths and syntax.
    """

    original: str
    change: str
    keeps_structure: bool


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a case.

    Attributes:
        number: of the case.
        mutant: None if not even that was made.
        parsed: whether the first parser took it, see `Kind.first_parser`.
        outcome: ACCEPTED, REFUSED or one of FAILURES.
        told: a digest of what was accepted, the sentence of a refusal, or the traceback of a failure.
    """

    number: int
    mutant: Mutant | None
    parsed: bool
    outcome: str
    told: str


class Kind(ABC):
    """A kind of input: originals are folders of files, and a case is a copy of one, damaged in one place.

    Args:
        folder: for the originals.
    """

    name: ClassVar[str]
    num_cases: ClassVar[int]  # of an ordinary run
    first_parser: ClassVar[str]  # what it means to have passed it, for people
    has_manifest: ClassVar[bool] = False  # ours, so that nothing damaged may be accepted with other content
    refused: ClassVar[tuple[str, ...]] = ()  # originals that are, even undamaged
    imports: ClassVar[tuple[str, ...]] = ()  # modules that the warm parent imports for it
    formats: ClassVar[Mapping[str, Damage]] = {}  # damage that keeps the format, by the end of the file's name

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parsed_while_open: bool | None = None  # of kinds whose first parser is seen at work only

    @abstractmethod
    def prepare(self) -> None:
        """Write the originals, each a folder in `self.folder`."""

    @abstractmethod
    def passes_first_parser(self, place: Path) -> bool:
        """Whether the format's own parser takes what lies there; it may raise."""

    @abstractmethod
    def open(self, place: Path) -> str:
        """Open what lies there as a user would; a digest of it."""

    def originals(self) -> list[Path]:
        """The folders of the originals."""
        return sorted(path for path in self.folder.iterdir() if path.is_dir())

    def mutate(self, place: Path, rng: Random) -> Mutant:
        """Put a damaged copy of one of the originals into `place`, which is not there yet."""
        keeps_structure = rng.random() < 0.5
        files = [path for original in self.originals() for path in self._files(original)]
        known = {path: damage for path in files for end, damage in self.formats.items() if path.name.endswith(end)}
        path = rng.choice(list(known) if keeps_structure and known else files)
        relative = path.relative_to(self.folder)
        original, name = self.folder / relative.parts[0], Path(*relative.parts[1:])
        shutil.copytree(original, place)
        if keeps_structure and path in known:
            content, change = known[path](path.read_bytes(), rng)
            (place / name).write_bytes(content)
            return Mutant(original=original.name, change=f"{name}: {change}", keeps_structure=True)
        if rng.random() < 0.1:
            change = mutations.misplace(place / name, self._files(place), rng)
        else:
            content, change = mutations.damage_bytes(path.read_bytes(), rng)
            (place / name).write_bytes(content)
        return Mutant(original=original.name, change=f"{name}: {change}", keeps_structure=False)

    def _files(self, folder: Path) -> list[Path]:
        return sorted(path for path in folder.rglob("*") if path.is_file() and self.is_damaged(path))

    def is_damaged(self, path: Path) -> bool:
        """Whether a file of the originals is one to damage."""
        return True


def random_of(seed: int, kind: str, number: int) -> Random:
    """The randomness of a case."""
    return Random(f"{seed} {kind} {number}")
