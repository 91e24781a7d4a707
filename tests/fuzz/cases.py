"""The interface of a kind of input, and the result of a case."""

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


class WrongExitError(Exception):
    """A command exited in a way that no command should."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A damaged copy of an original.

    Attributes:
        original: name of the original.
        change: one-line description of the damage.
        keeps_structure: whether the file format is still valid: checksums, lengths and syntax.
    """

    original: str
    change: str
    keeps_structure: bool


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a case.

    Attributes:
        number: of the case.
        mutant: None if it could not be made.
        parsed: whether the first parser accepted it, see `Kind.first_parser`.
        outcome: ACCEPTED, REFUSED or one of FAILURES.
        detail: a digest of the accepted content, the message of a refusal, or the traceback of a failure.
    """

    number: int
    mutant: Mutant | None
    parsed: bool
    outcome: str
    detail: str


class Kind(ABC):
    """A kind of input. Originals are folders of files; a case is a copy of one of them, damaged in one case_folder.

    Args:
        folder: for the originals.
    """

    name: ClassVar[str]
    num_cases: ClassVar[int]  # in an ordinary run
    first_parser: ClassVar[str]  # what passing it means, for the report
    has_manifest: ClassVar[bool] = False  # if so, damaged content must never be accepted
    refused: ClassVar[tuple[str, ...]] = ()  # originals that are refused even undamaged
    imports: ClassVar[tuple[str, ...]] = ()  # modules that the parent process imports
    formats: ClassVar[Mapping[str, Damage]] = {}  # file suffix -> damage that keeps the format valid

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parsed_while_open: bool | None = None  # for kinds whose first parser runs only in `open`

    @abstractmethod
    def prepare(self) -> None:
        """Write the originals as folders in `self.folder`."""

    @abstractmethod
    def passes_first_parser(self, case_folder: Path) -> bool:
        """Whether the parser of the file format accepts the case; it may raise."""

    @abstractmethod
    def open(self, case_folder: Path) -> str:
        """Open the case as a user would; return a digest of the content."""

    def originals(self) -> list[Path]:
        """The folders of the originals."""
        return sorted(path for path in self.folder.iterdir() if path.is_dir())

    def mutate(self, case_folder: Path, rng: Random) -> Mutant:
        """Write a damaged copy of one of the originals to `case_folder`, which must not exist."""
        keeps_structure = rng.random() < 0.5
        files = [path for original in self.originals() for path in self._files(original)]
        known = {path: damage for path in files for end, damage in self.formats.items() if path.name.endswith(end)}
        path = rng.choice(list(known) if keeps_structure and known else files)
        relative = path.relative_to(self.folder)
        original, name = self.folder / relative.parts[0], Path(*relative.parts[1:])
        shutil.copytree(original, case_folder)
        if keeps_structure and path in known:
            content, change = known[path](path.read_bytes(), rng)
            (case_folder / name).write_bytes(content)
            return Mutant(original=original.name, change=f"{name}: {change}", keeps_structure=True)
        if rng.random() < 0.1:
            change = mutations.misplace(case_folder / name, self._files(case_folder), rng)
        else:
            content, change = mutations.damage_bytes(path.read_bytes(), rng)
            (case_folder / name).write_bytes(content)
        return Mutant(original=original.name, change=f"{name}: {change}", keeps_structure=False)

    def _files(self, folder: Path) -> list[Path]:
        return sorted(path for path in folder.rglob("*") if path.is_file() and self.is_damaged(path))

    def is_damaged(self, path: Path) -> bool:
        """Whether a file of an original may be damaged."""
        return True


def random_of(seed: int, kind: str, number: int) -> Random:
    """Return the random generator of a case."""
    return Random(f"{seed} {kind} {number}")
