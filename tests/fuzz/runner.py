"""Running many cases: a warm parent, a few children at a time, and a folder for every case that fails."""

import dataclasses
import importlib
import json
import multiprocessing
import os
import selectors
import shutil
import signal
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .cases import ACCEPTED, CRASH, FAILURES, HANG, REFUSED, SILENT, Kind, Mutant, Result, random_of
from .worker import Worker, isolate, limit_time, opened

BATCH = 25  # cases a child: a fork takes 10 to 20 ms, most cases less


class _Batch(NamedTuple):
    kind: Kind
    numbers: list[int]


class Runner:
    """Runs cases of some kinds with a seed.

    Args:
        kinds: prepared already, see `prepare`.
        seed: of the run.
        folder: for what is damaged and for failures.
        processes: children at a time.
        check_originals: see that all that is not damaged is accepted; needed for kinds with a manifest.
    """

    def __init__(
        self, kinds: Sequence[Kind], seed: int, folder: Path, processes: int, *, check_originals: bool = True
    ) -> None:
        self._kinds, self._seed, self._folder, self._processes = kinds, seed, folder, processes
        self._baselines = {kind.name: baselines(kind, folder) for kind in kinds} if check_originals else {}
        self._num_workers = 0

    def run(self, numbers: dict[str, Sequence[int]]) -> Iterator[tuple[Kind, Result]]:
        """Run cases, and keep those that fail.

        Args:
            numbers: of the cases, by kind.
        Yields: results as they come.
        """
        waiting = deque(
            _Batch(kind, list(numbers[kind.name][start : start + BATCH]))
            for kind in self._kinds
            for start in range(0, len(numbers[kind.name]), BATCH)
        )
        with selectors.DefaultSelector() as selector:
            while waiting or selector.get_map():
                while waiting and len(selector.get_map()) < self._processes:
                    worker = self._start(waiting.popleft())
                    selector.register(worker.fd, selectors.EVENT_READ, worker)
                for key, _ in selector.select(timeout=1):
                    worker: Worker = key.data
                    results, has_ended = worker.read()
                    if has_ended:
                        selector.unregister(worker.fd)
                        last, left = worker.finish()
                        results += [] if last is None else [last]
                        if left:
                            waiting.appendleft(_Batch(worker.kind, left))
                    yield from ((worker.kind, self._checked(worker.kind, result)) for result in results)
                for key in list(selector.get_map().values()):
                    key.data.stop_if_late()

    def _start(self, batch: _Batch) -> Worker:
        self._num_workers += 1
        scratch = self._folder / "scratch" / str(self._num_workers)
        shutil.rmtree(scratch, ignore_errors=True)
        return Worker(batch.kind, self._seed, batch.numbers, scratch)

    def _checked(self, kind: Kind, result: Result) -> Result:
        """The result, if content is compared after a comparison; a failure is kept."""
        if kind.has_manifest and result.outcome == ACCEPTED and result.mutant is not None:
            expected = self._baselines[kind.name][result.mutant.original]
            if result.told != expected:
                told = f"read as {result.told}, undamaged {expected}"
                result = dataclasses.replace(result, outcome=SILENT, told=told)
        if result.outcome in FAILURES:
            self._keep(kind, result)
        return result

    def _keep(self, kind: Kind, result: Result) -> None:
        """Write a case that failed, as it was before it was opened."""
        place = failure_folder(self._folder, kind.name, self._seed, result.number)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        if result.mutant is not None:
            _in_child(_mutate_again, kind, self._seed, result.number, place / "case")
        told = {"kind": kind.name, "seed": self._seed, **dataclasses.asdict(result)}
        (place / "case.json").write_text(json.dumps(told, indent=2))
        (place / "replay.txt").write_text(f"{replay_command(place)}\n\n{result.outcome}: {result.told}\n")


def failure_folder(folder: Path, kind: str, seed: int, number: int) -> Path:
    """Where a case that failed is kept."""
    return folder / "failures" / f"{kind}-{seed}-{number}"


def replay_command(place: Path) -> str:
    """What opens a case that was kept."""
    return f".venv/bin/python -m tests.fuzz --replay {place}"


def prepare(kinds: Sequence[Kind], *, anew: bool = True) -> None:
    """Import what the kinds need, and have children write the originals, so that this process starts no threads.

    Args:
        kinds: all that are run.
        anew: whether originals that are there are written again.
    """
    for kind in kinds:
        for module in kind.imports:
            importlib.import_module(module)
    for kind in kinds:
        if anew:
            shutil.rmtree(kind.folder, ignore_errors=True)
        if not kind.folder.is_dir():
            kind.folder.mkdir(parents=True)
            _in_child(_prepare, kind)


def baselines(kind: Kind, folder: Path) -> dict[str, str]:
    """The digest of every original, which must be accepted by all.

    Raises: RuntimeError if one is not.
    """
    found = {}
    for original in kind.originals():
        place, told = folder / "scratch" / f"{kind.name}-{original.name}", folder / "baseline.json"
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(original, place)
        _in_child(_open_original, kind, place, told)
        outcome, digest = json.loads(told.read_text())
        told.unlink()
        shutil.rmtree(place, ignore_errors=True)
        if outcome != (REFUSED if original.name in kind.refused else ACCEPTED):
            raise RuntimeError(f"the undamaged {original} is not accepted: {outcome}: {digest}")
        found[original.name] = digest
    return found


def replay(kind: Kind, place: Path) -> tuple[str, str]:
    """Open a case that was kept; its outcome, and what there is to tell of it.

    Args:
        kind: prepared, of the case.
        place: the folder that `Runner` wrote.
    """
    copy, told = place / "copy", place / "told.json"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(place / "case", copy, symlinks=True)
    try:
        _in_child(_open_original, kind, copy, told)
    except RuntimeError as error:
        return (HANG if str(error).endswith(f" {-signal.SIGXCPU}") else CRASH), str(error)
    outcome, text = json.loads(told.read_text())
    told.unlink()
    mutant = Mutant(**json.loads((place / "case.json").read_text())["mutant"])
    expected = baselines(kind, place)[mutant.original]
    if kind.has_manifest and outcome == ACCEPTED and text != expected:
        return SILENT, f"read as {text}, undamaged {expected}"
    return outcome, text


def exit_code(outcome: str) -> int:
    """Of a replay: 0 if the case is all right."""
    return 0 if outcome in (ACCEPTED, REFUSED) else 1


def _prepare(kind: Kind) -> None:
    log = os.open(kind.folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(kind.folder)
    warnings.simplefilter("ignore")
    kind.prepare()


def _mutate_again(kind: Kind, seed: int, number: int, place: Path) -> None:
    kind.mutate(place, random_of(seed, kind.name, number))


def _open_original(kind: Kind, place: Path, told: Path) -> None:
    streams = place.parent / f"{place.name}-streams"
    streams.mkdir(exist_ok=True)
    isolate(streams)
    limit_time()
    os.chdir(place.parent)
    told.write_text(json.dumps(opened(kind, place)))
    shutil.rmtree(streams)


def _in_child(function, *arguments) -> None:
    """Call a function in a forked process.

    Raises: RuntimeError if it fails.
    """
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{function.__name__} of {arguments[0].name} ended with {process.exitcode}")
