"""One command in trouble, again and again in forks of this process, and what may not be left of it.

A case runs in a fresh copy of a folder, the place, which holds all that the command writes, its cache included:

    the command is killed, or a call of it fails        it ends, in one sentence if it lives
    the same command again                              the place is that of an undisturbed run
    ... or it refuses, in one sentence: then the command that it advises, with --force
"""

import gc
import importlib
import os
import re
import shutil
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from chaos_calls import KINDS, Action, Trouble, arm

_LIMIT_S = 60

# What may be after a warning: a run without a picture, which is worth as much; and for the next command to remove, what
# was replaced.
_PICTURES = re.compile(r"out/(samples|samples/.*\.png|curve\.png)")
_CACHE = re.compile(r"cache(/.*)?")  # what only saves work is written if it can be
_REPLACED = re.compile(r"\.out\.[0-9a-f]{8}\.old(/.*)?")


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit status (minus the signal if one killed it), and what it said."""

    status: int
    said: str

    @property
    def in_one_sentence(self):
        """Whether it ended well, or in one line that begins with "error:"."""
        errors = [line for line in self.said.splitlines() if line.startswith("error:")]
        return "Traceback" not in self.said and (self.status == 0 or (self.status in (1, 2) and len(errors) == 1))


class Place:
    """Runs a job in fresh copies of its place.

    Args:
        job: see `chaos_jobs`.
        inputs: what it reads.
        work: a folder of our own.
        library: of `chaos_calls`.
    """

    def __init__(self, job, inputs, work, library):
        self.job, self.library = job, library
        self.place, self._template, self._said = work / "place", work / "template", work / "said"
        self._template.mkdir()
        job.prepare(self._template, inputs)
        self._warm()
        self.fresh()
        ended, self.points = self.run(job.command, Trouble(Action.COUNT))
        assert ended.status == 0, ended.said
        self.expected = job.contents(self.place)

    def fresh(self):
        """Put the place back to what it was at first."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self._template, self.place, symlinks=True)

    def run(self, command, trouble=None):
        """Run a command in a child; how it ended, and where it changed files if they were counted."""
        log = self._said.with_suffix(".points")
        child = os.fork()
        if child == 0:
            _become(command, self.place, self._said, self.library, trouble, log)
        _, status = os.waitpid(child, 0)
        ended = Ended(os.waitstatus_to_exitcode(status), self._said.read_text(errors="replace"))
        if trouble is None or trouble.action is not Action.COUNT:
            return ended, []
        return ended, log.read_text().replace(f"{self.place}/", "").splitlines()

    def case(self, trouble):
        """What is wrong after some trouble, in a few words, or None; and the sentence of a refusal, or None."""
        self.fresh()
        ended, _ = self.run(self.job.command, trouble)
        if trouble.action is Action.KILL:
            if ended.status != -signal.SIGKILL:
                return f"was not killed but ended with {ended.status}: {ended.said}", None
        elif not ended.in_one_sentence:
            return f"ended with {ended.status}: {ended.said}", None
        warned = "warning:" in ended.said
        if ended.status == 0 and (told := self.difference(_CACHE, *(_PICTURES, _REPLACED) if warned else ())):
            return f"said nothing, and {told}", None
        again, _ = self.run(self.job.command)
        if again.status == 0:
            return (told := self.difference(*(_PICTURES,) if warned else ())) and f"the same command: {told}", None
        if not again.in_one_sentence:
            return f"the same command ended with {again.status}: {again.said}", None
        if self.job.forced is None:
            return f"the same command refuses, and there is no other: {again.said}", None
        forced, _ = self.run(self.job.forced)
        if forced.status != 0:
            return f"the same command said {again.said} and --force {forced.said}", None
        return (told := self.difference()) and f"--force: {told}", re.sub(r"[0-9a-f]{8}|\d+", "N", again.said)

    def difference(self, *others):
        """In which files the place is not that of an undisturbed run, but for some patterns; None if in none."""
        there = self.job.contents(self.place)
        told = [
            f"{name} is {'missing' if name not in there else 'other' if name in self.expected else 'left'}"
            for name in sorted(there.keys() | self.expected.keys())
            if there.get(name) != self.expected.get(name) and not any(one.fullmatch(name) for one in others)
        ]
        return ", ".join(told) or None

    def _warm(self):
        """Import what the command imports, so that its forks need not; with no threads, which a fork would lose."""
        self.fresh()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            _become(self.job.command, self.place, self._said, tell_modules=writing)
        os.close(writing)
        with os.fdopen(reading) as names:
            modules = names.read().split()
        _, status = os.waitpid(child, 0)
        assert status == 0, self._said.read_text()
        for name in modules:
            if name not in sys.modules:
                with suppress(Exception):  # names that were made up while a module was imported
                    importlib.import_module(name)
        gc.collect()
        gc.freeze()
        threads = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
        assert len(threads) == 1, threads


def trouble_at(points, every=1):
    """Each kind of trouble at each of so many points, or every so manieth case; with 4 each point meets one kind."""
    for number in range(1, points + 1):
        for index, kind in enumerate(KINDS):
            if (number + index) % every == 0:
                yield replace(kind, number=number)


def _become(command, place, said, library=None, trouble=None, log=None, tell_modules=None):
    """What a child does; it never returns."""
    status = 1
    try:
        signal.alarm(_LIMIT_S)
        os.chdir(place)
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ["XDG_CACHE_HOME"] = str(place / "cache")
        if trouble is not None:
            lines = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            arm(library, place, trouble, lines)
        command()
        status = 0
    except SystemExit as ended:
        status = ended.code
    except BaseException:  # noqa: BLE001 - it is told, and the process ends
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        if tell_modules is not None:
            os.write(tell_modules, "\n".join(sys.modules).encode())
        os._exit(status)
