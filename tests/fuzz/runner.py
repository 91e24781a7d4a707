"""Run many cases: a parent that has imported everything, a few children at a time, a folder for every failed case."""

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

BATCH = 25  # cases per child: a fork takes 10 to 20 ms, most cases less


class _Batch(NamedTuple):
    kind: Kind
    numbers: list[int]


class Runner:
    """Runs cases of given kinds with a seed.

    Args:
        kinds: prepared by `prepare`.
        seed: of the run.
        folder: for damaged copies and failed cases.
        processes: number of concurrent children.
        check_originals: check that undamaged originals are accepted; required for kinds with a manifest.
    """

    def __init__(
        self, kinds: Sequence[Kind], seed: int, folder: Path, processes: int, *, check_originals: bool = True
    ) -> None:
        self._kinds, self._seed, self._folder, self._processes = kinds, seed, folder, processes
        self._baselines = {kind.name: baselines(kind, folder) for kind in kinds} if check_originals else {}
        self._num_workers = 0

    def run(self, numbers: dict[str, Sequence[int]]) -> Iterator[tuple[Kind, Result]]:
        """Run cases and save those that fail.

        Args:
            numbers: kind -> numbers of its cases.
        Yields: results as they arrive.
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
        """Compare accepted content with the original, and save the case if it failed."""
        if kind.has_manifest and result.outcome == ACCEPTED and result.mutant is not None:
            expected = self._baselines[kind.name][result.mutant.original]
            if result.detail != expected:
                detail = f"read as {result.detail}, undamaged {expected}"
                result = dataclasses.replace(result, outcome=SILENT, detail=detail)
        if result.outcome in FAILURES:
            self._keep(kind, result)
        return result

    def _keep(self, kind: Kind, result: Result) -> None:
        """Save a failed case, as it was before it was opened."""
        case_folder = failure_folder(self._folder, kind.name, self._seed, result.number)
        shutil.rmtree(case_folder, ignore_errors=True)
        case_folder.mkdir(parents=True)
        if result.mutant is not None:
            _in_child(_mutate_again, kind, self._seed, result.number, case_folder / "case")
        detail = {"kind": kind.name, "seed": self._seed, **dataclasses.asdict(result)}
        (case_folder / "case.json").write_text(json.dumps(detail, indent=2))
        (case_folder / "replay.txt").write_text(f"{replay_command(case_folder)}\n\n{result.outcome}: {result.detail}\n")


def failure_folder(folder: Path, kind: str, seed: int, number: int) -> Path:
    """Folder of a failed case."""
    return folder / "failures" / f"{kind}-{seed}-{number}"


def replay_command(case_folder: Path) -> str:
    """Command that replays a failed case."""
    return f".venv/bin/python -m tests.fuzz --replay {case_folder}"


def prepare(kinds: Sequence[Kind], *, overwrite: bool = True) -> None:
    """Import what the kinds need, and write the originals in child processes, so that this one starts no threads.

    Args:
        kinds: all that are run.
        overwrite: overwrite existing originals.
    """
    for kind in kinds:
        for module in kind.imports:
            importlib.import_module(module)
    for kind in kinds:
        if overwrite:
            shutil.rmtree(kind.folder, ignore_errors=True)
        if not kind.folder.is_dir():
            kind.folder.mkdir(parents=True)
            _in_child(_prepare, kind)


def baselines(kind: Kind, folder: Path) -> dict[str, str]:
    """Return the digest of every original; all must be accepted.

    Raises: RuntimeError if one is not.
    """
    found = {}
    for original in kind.originals():
        case_folder, detail = folder / "scratch" / f"{kind.name}-{original.name}", folder / "baseline.json"
        shutil.rmtree(case_folder, ignore_errors=True)
        case_folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(original, case_folder)
        _in_child(_open_original, kind, case_folder, detail)
        outcome, digest = json.loads(detail.read_text())
        detail.unlink()
        shutil.rmtree(case_folder, ignore_errors=True)
        if outcome != (REFUSED if original.name in kind.refused else ACCEPTED):
            raise RuntimeError(f"the undamaged {original} is not accepted: {outcome}: {digest}")
        found[original.name] = digest
    return found


def replay(kind: Kind, case_folder: Path) -> tuple[str, str]:
    """Open a failed case again; return its outcome and detail.

    Args:
        kind: of the case, prepared.
        case_folder: the folder that `Runner` wrote.
    """
    copy, detail = case_folder / "copy", case_folder / "detail.json"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(case_folder / "case", copy, symlinks=True)
    try:
        _in_child(_open_original, kind, copy, detail)
    except RuntimeError as error:
        return (HANG if str(error).endswith(f" {-signal.SIGXCPU}") else CRASH), str(error)
    outcome, text = json.loads(detail.read_text())
    detail.unlink()
    mutant = Mutant(**json.loads((case_folder / "case.json").read_text())["mutant"])
    expected = baselines(kind, case_folder)[mutant.original]
    if kind.has_manifest and outcome == ACCEPTED and text != expected:
        return SILENT, f"read as {text}, undamaged {expected}"
    return outcome, text


def exit_code(outcome: str) -> int:
    """Exit code of a replay: 0 if the case does not fail."""
    return 0 if outcome in (ACCEPTED, REFUSED) else 1


def _prepare(kind: Kind) -> None:
    log = os.open(kind.folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(kind.folder)
    warnings.simplefilter("ignore")
    kind.prepare()


def _mutate_again(kind: Kind, seed: int, number: int, case_folder: Path) -> None:
    kind.mutate(case_folder, random_of(seed, kind.name, number))


def _open_original(kind: Kind, case_folder: Path, detail: Path) -> None:
    streams = case_folder.parent / f"{case_folder.name}-streams"
    streams.mkdir(exist_ok=True)
    isolate(streams)
    limit_time()
    os.chdir(case_folder.parent)
    detail.write_text(json.dumps(opened(kind, case_folder)))
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
