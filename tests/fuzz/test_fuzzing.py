"""A little of every kind of input, and that the fuzzer sees what a loader must not do."""

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

CASES, COMMANDS = 12, 6  # each of these runs a command
SEED = 20


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def run(kind, place, cases, seed=SEED, **options):
    prepare([kind], anew=False)
    runner = Runner([kind], seed, place, 1, **options)
    report, results = Report([kind]), []
    for _, result in runner.run({kind.name: range(cases)}):
        report.add(kind, result)
        results.append(result)
    return results, report


@pytest.mark.parametrize("name", KINDS)
def test_a_few_cases(name, place):
    kind = KINDS[name](place / "originals" / name)
    cases = COMMANDS if name == "commands" else CASES
    results, report = run(kind, place, cases, check_originals=kind.has_manifest)
    assert sorted(result.number for result in results) == list(range(cases))
    told = [failure_line(kind, result, place) for result in results if result.outcome in FAILURES]
    assert not told, f"{report.table()}\n" + "\n".join(told)


class Planted(Kind):
    """A kind of input whose loader does what its file says."""

    name = "planted"
    num_cases = 11
    first_parser = "it always does"
    has_manifest = True
    DOES = ("accept", "refuse", "foreign", "json", "lines", "crash", "leave", "hang", "memory", "allocate", "differ")

    def prepare(self):
        (self.folder / "original").mkdir()
        (self.folder / "original" / "file").write_text("accept")

    def mutate(self, place, rng):
        place.mkdir()
        does = self.DOES[int(place.name)] if place.name.isdigit() else "kept"
        (place / "file").write_text(does)
        return Mutant(original="original", change=does, keeps_structure=False)

    def passes_first_parser(self, place):
        return True

    def open(self, place):
        does = (place / "file").read_text()
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


def test_the_fuzzer_is_not_blind(place, monkeypatch):
    monkeypatch.setattr("fuzz.worker.CPU_SECONDS", 1)
    monkeypatch.setattr("fuzz.worker.MOST_GROWTH", 100 << 20)
    kind = Planted(place / "originals" / "planted")
    results, report = run(kind, place, len(EXPECTED))
    assert {result.mutant.change: result.outcome for result in results} == EXPECTED
    assert report.num_failures == 9
    assert all(result.parsed for result in results)
    crash = next(result for result in results if result.outcome == CRASH)
    assert crash.told == "ended with SIGSEGV"
    kept = failure_folder(place, "planted", SEED, Planted.DOES.index("foreign"))
    assert "KeyError: 'num_images'" in (kept / "replay.txt").read_text()
    assert str(kept) in (kept / "replay.txt").read_text()
    assert replay(kind, kept) == (ACCEPTED, "content")  # the copy is named otherwise, and does what "kept" does


def test_a_loader_that_sleeps_is_a_hang(place, monkeypatch):
    monkeypatch.setattr("fuzz.worker.WALL_SECONDS", 1)

    class Sleeping(Planted):
        name = "sleeping"

        def open(self, place):
            if (place / "file").read_text() == "refuse":
                time.sleep(0.01)
                os.read(os.pipe()[0], 1)
            return "content"

    results, _ = run(Sleeping(place / "originals" / "sleeping"), place, 4)
    assert [result.outcome for result in results] == [ACCEPTED, HANG, ACCEPTED, ACCEPTED]


def test_a_mutation_that_fails_is_a_mistake_in_the_fuzzer(place):
    class Wrong(Planted):
        name = "wrong"

        def mutate(self, place, rng):
            raise KeyError("x")

    results, _ = run(Wrong(place / "originals" / "wrong"), place, 2)
    assert [result.outcome for result in results] == [FUZZER, FUZZER]


ENDS = {
    "a traceback": lambda words: 1 / 0,
    "an exit code": lambda words: os.sys.exit(3),
    "no sentence": lambda words: os.sys.exit(2),
    "two errors": lambda words: (os.sys.stderr.write("error: x\nerror: y\n"), os.sys.exit(2)),
    "several lines": lambda words: (os.sys.stderr.write("error: x\nand more\n"), os.sys.exit(2)),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_command_that_ends_wrongly_is_seen(end, place, monkeypatch):
    monkeypatch.setattr("imagegpt.cli.main", ENDS[end])

    class Ending(CommandLines):
        name = "ending"
        refused = ("info",)

        def prepare(self):
            (self.folder / "info").mkdir()
            (self.folder / "info" / "command.json").write_text('["info"]')
            (self.folder / "info" / "file").write_text("x")

    results, _ = run(Ending(place / "originals" / end), place, 3, check_originals=False)
    assert {result.outcome for result in results} == {EXIT}


def test_a_case_depends_on_its_seed_and_number_alone(place):
    kind = KINDS["bundles"](place / "originals" / "again")
    first, again, other = (run(kind, place, 10, seed=seed, check_originals=False)[0] for seed in (1, 1, 2))
    assert first == again
    assert [one.mutant for one in first] != [one.mutant for one in other]


def test_about_half_of_the_mutants_keep_their_format(place):
    kind = KINDS["bundles"](place / "originals" / "half")
    results, report = run(kind, place, 60, check_originals=False)
    kept = Counter(result.mutant.keeps_structure for result in results)
    assert 15 < kept[True] < 45
    assert all(result.parsed for result in results if result.mutant.keeps_structure)
    assert report.table().splitlines()[1].split()[:3] == ["bundles", "60", str(kept[True])]
