"""A few cases of every kind of input, and tests that the fuzzer finds planted bugs."""

import ctypes
import os
import time
from collections import Counter

import pytest

from fuzz.cases import ACCEPTED, CRASH, EXIT, FAILURES, FOREIGN, FUZZER, HANG, MEMORY, REFUSED, SILENT, Kind, Mutant
from fuzz.command_lines import CommandLines
from fuzz.kinds import KINDS
from fuzz.report import Report, failure_line
from fuzz.runner import Runner, failure_folder, prepare, replay

CASES, COMMANDS = 12, 6  # each case runs a command
SEED = 20


@pytest.fixture(scope="module")
def case_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def run(kind, case_folder, cases, seed=SEED, **options):
    prepare([kind], overwrite=False)
    runner = Runner([kind], seed, case_folder, 1, **options)
    report, results = Report([kind]), []
    for _, result in runner.run({kind.name: range(cases)}):
        report.add(kind, result)
        results.append(result)
    return results, report


@pytest.mark.parametrize("name", KINDS)
def test_a_few_cases_of_every_kind(name, case_folder):
    kind = KINDS[name](case_folder / "originals" / name)
    cases = COMMANDS if name == "commands" else CASES
    results, report = run(kind, case_folder, cases, check_originals=kind.has_manifest)
    assert sorted(result.number for result in results) == list(range(cases))
    detail = [failure_line(kind, result, case_folder) for result in results if result.outcome in FAILURES]
    assert not detail, f"{report.table()}\n" + "\n".join(detail)


class Planted(Kind):
    """A kind of input whose loader has the bug that its file names."""

    name = "planted"
    num_cases = 11
    first_parser = "it always does"
    has_manifest = True
    DOES = ("accept", "refuse", "foreign", "json", "lines", "crash", "leave", "hang", "memory", "allocate", "differ")

    def prepare(self):
        (self.folder / "original").mkdir()
        (self.folder / "original" / "file").write_text("accept")

    def mutate(self, case_folder, rng):
        case_folder.mkdir()
        does = self.DOES[int(case_folder.name)] if case_folder.name.isdigit() else "kept"
        (case_folder / "file").write_text(does)
        return Mutant(original="original", change=does, keeps_structure=False)

    def passes_first_parser(self, case_folder):
        return True

    def open(self, case_folder):
        does = (case_folder / "file").read_text()
        if does == "refuse":
            raise ValueError("the file is damaged: get it again")
        if does == "foreign":
            raise KeyError("num_images")
        if does == "json":
            import json

            json.loads("{")
        if does == "lines":
            raise ValueError("one line\nand another")
        if does == "crash":
            ctypes.string_at(0)
        if does == "leave":
            os._exit(0)
        while does == "hang":
            pass
        if does == "memory":
            assert bytes(range(256)) * (1 << 20)
        if does == "allocate":
            bytearray(1 << 50)
        return "other content" if does == "differ" else "content"


EXPECTED = {
    "accept": ACCEPTED, "refuse": REFUSED, "foreign": FOREIGN, "json": FOREIGN, "lines": FOREIGN, "crash": CRASH,
    "leave": CRASH, "hang": HANG,
    "memory": MEMORY, "allocate": MEMORY, "differ": SILENT,
}  # fmt: skip


def test_the_fuzzer_finds_planted_bugs(case_folder, monkeypatch):
    monkeypatch.setattr("fuzz.worker.CPU_SECONDS", 1)
    monkeypatch.setattr("fuzz.worker.MAX_MEMORY_GROWTH", 100 << 20)
    kind = Planted(case_folder / "originals" / "planted")
    results, report = run(kind, case_folder, len(EXPECTED))
    assert {result.mutant.change: result.outcome for result in results} == EXPECTED
    assert report.num_failures == 9
    assert all(result.parsed for result in results)
    crash = next(result for result in results if result.outcome == CRASH)
    assert crash.detail == "ended with SIGSEGV"
    kept = failure_folder(case_folder, "planted", SEED, Planted.DOES.index("foreign"))
    assert "KeyError: 'num_images'" in (kept / "replay.txt").read_text()
    assert str(kept) in (kept / "replay.txt").read_text()
    assert replay(kind, kept) == (ACCEPTED, "content")  # the copy has another name, so its loader has no bug


def test_a_loader_that_sleeps_is_a_hang(case_folder, monkeypatch):
    monkeypatch.setattr("fuzz.worker.WALL_SECONDS", 1)

    class Sleeping(Planted):
        name = "sleeping"

        def open(self, case_folder):
            if (case_folder / "file").read_text() == "refuse":
                time.sleep(0.01)
                os.read(os.pipe()[0], 1)
            return "content"

    results, _ = run(Sleeping(case_folder / "originals" / "sleeping"), case_folder, 4)
    assert [result.outcome for result in results] == [ACCEPTED, HANG, ACCEPTED, ACCEPTED]


def test_a_failing_mutation_is_reported_as_a_bug_of_the_fuzzer(case_folder):
    class Wrong(Planted):
        name = "wrong"

        def mutate(self, case_folder, rng):
            raise KeyError("x")

    results, _ = run(Wrong(case_folder / "originals" / "wrong"), case_folder, 2)
    assert [result.outcome for result in results] == [FUZZER, FUZZER]


ENDS = {
    "a traceback": lambda words: 1 / 0,
    "an exit code": lambda words: os.sys.exit(3),
    "no sentence": lambda words: os.sys.exit(2),
    "two errors": lambda words: (os.sys.stderr.write("error: x\nerror: y\n"), os.sys.exit(2)),
    "several lines": lambda words: (os.sys.stderr.write("error: x\nand more\n"), os.sys.exit(2)),
}


@pytest.mark.parametrize("end", ENDS)
def test_commands_that_exit_wrongly_are_found(end, case_folder, monkeypatch):
    monkeypatch.setattr("imagegpt.cli.main", ENDS[end])

    class Ending(CommandLines):
        name = "ending"
        refused = ("info",)

        def prepare(self):
            (self.folder / "info").mkdir()
            (self.folder / "info" / "command.json").write_text('["info"]')
            (self.folder / "info" / "file").write_text("x")

    results, _ = run(Ending(case_folder / "originals" / end), case_folder, 3, check_originals=False)
    assert {result.outcome for result in results} == {EXIT}


def test_a_case_depends_on_its_seed_and_number_alone(case_folder):
    kind = KINDS["bundles"](case_folder / "originals" / "again")
    first, again, other = (run(kind, case_folder, 10, seed=seed, check_originals=False)[0] for seed in (1, 1, 2))
    assert first == again
    assert [one.mutant for one in first] != [one.mutant for one in other]


def test_about_half_of_the_mutants_keep_their_format(case_folder):
    kind = KINDS["bundles"](case_folder / "originals" / "half")
    results, report = run(kind, case_folder, 60, check_originals=False)
    kept = Counter(result.mutant.keeps_structure for result in results)
    assert 15 < kept[True] < 45
    assert all(result.parsed for result in results if result.mutant.keeps_structure)
    assert report.table().splitlines()[1].split()[:3] == ["bundles", "60", str(kept[True])]
