"""The command line of the fuzzer, see the package's docstring."""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from .cases import Kind
from .kinds import KINDS
from .report import Report, failure_line
from .runner import Runner, exit_code, failure_folder, prepare, replay


def main() -> int:
    """Parse the command line and run the fuzzer; return 0 if no case failed."""
    arguments = _arguments()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = os.environ["HOME"] = str(arguments.folder.resolve() / "home")
    names = arguments.kind or list(KINDS)
    if arguments.replay:
        names = [json.loads((arguments.replay / "case.json").read_text())["kind"]]
    kinds = [KINDS[name](arguments.folder.resolve() / "originals" / name) for name in names]
    _write(f"preparing {', '.join(names)} in {arguments.folder}")
    prepare(kinds, overwrite=not arguments.replay)
    if arguments.replay:
        outcome, detail = replay(kinds[0], arguments.replay.resolve())
        _write(f"{outcome}: {detail}")
        return exit_code(outcome)
    report, end = Report(kinds), time.monotonic() + 3600 * arguments.hours
    for seed in range(arguments.seed, sys.maxsize):
        _run(kinds, seed, arguments, report)
        _write(report.table())
        if time.monotonic() >= end:
            break
    return 1 if report.num_failures else 0


def _run(kinds: list[Kind], seed: int, arguments: argparse.Namespace, report: Report) -> None:
    folder = arguments.folder.resolve()
    runner = Runner(kinds, seed, folder, arguments.processes)
    if arguments.case is not None:
        numbers = {kind.name: [arguments.case] for kind in kinds}
    else:
        numbers = {kind.name: range(arguments.cases or kind.num_cases) for kind in kinds}
    for kind, result in runner.run(numbers):
        report.add(kind, result)
        case_folder = failure_folder(folder, kind.name, seed, result.number)
        if case_folder.is_dir() and result.outcome not in ("accepted", "refused"):
            _write(failure_line(kind, result, case_folder))
        elif arguments.verbose:
            _write(f"{kind.name} {result.number} {result.outcome}: {result.detail:.300} ({result.mutant})")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Hand damaged input to imagegpt.")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="only this kind; may be repeated")
    parser.add_argument("--cases", type=int, help="of each kind, instead of the usual number")
    parser.add_argument("--case", type=int, help="only the case of this number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hours", type=float, default=0, help="go on with the next seeds for so long")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="children at a time")
    default = Path(tempfile.gettempdir()) / "imagegpt-fuzz"
    parser.add_argument("--folder", type=Path, default=default, help=f"for originals and failures; {default}")
    parser.add_argument("--replay", type=Path, help="the folder of a case that failed")
    parser.add_argument("--verbose", action="store_true", help="a line for every case")
    return parser.parse_args()


def _write(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
