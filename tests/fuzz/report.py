"""The final table, and a line for every failure."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .cases import ACCEPTED, FAILURES, REFUSED, Kind, Result


class Report:
    """Counts the results of the cases.

    Args:
        kinds: all that are run.
    """

    def __init__(self, kinds: Sequence[Kind]) -> None:
        self._kinds = kinds
        self._counts = {kind.name: Counter[str]() for kind in kinds}
        self.num_failures = 0

    def add(self, kind: Kind, result: Result) -> None:
        """Count a result."""
        counts = self._counts[kind.name]
        counts.update(["cases", result.outcome])
        counts["parsed"] += result.parsed
        counts["structure"] += result.mutant is not None and result.mutant.keeps_structure
        self.num_failures += result.outcome in FAILURES

    def table(self) -> str:
        """Format one row per kind, and what passing the first parser means."""
        head = ["kind", "cases", "kept structure", "passed parser", ACCEPTED, REFUSED, *FAILURES]
        keys = ["cases", "structure", "parsed", ACCEPTED, REFUSED, *FAILURES]
        rows = [[kind.name, *(f"{self._counts[kind.name][key]:,}" for key in keys)] for kind in self._kinds]
        total = sum(self._counts.values(), Counter())
        rows.append(["all", *(f"{total[key]:,}" for key in keys)])
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if cell is row[0] else cell.rjust(width)
                for cell, width in zip(row, widths, strict=True)
            )
            for row in (head, *rows)
        ]
        meanings = [f"passed parser, {kind.name}: {kind.first_parser}" for kind in self._kinds]
        return "\n".join([*lines, "", *meanings])


def failure_line(kind: Kind, result: Result, case_folder: Path) -> str:
    """Describe a failure and its folder in one line."""
    last = result.detail.strip().splitlines()[-1] if result.detail.strip() else ""
    change = "" if result.mutant is None else f"{result.mutant.original}, {result.mutant.change:.120}"
    return f"{kind.name} {result.number} {result.outcome}: {last:.200} ({change}) {case_folder}"
