"""Every command and every Python block of README and docs is run, so that none of them can rot.

A block opens with ```bash or ```python; ```bash slow takes minutes and runs with `-m slow`. Commands run in an empty
folder that holds the repository's `examples`, and a user's `photos`. `make` targets are what CI itself runs; here they
must exist.
"""

import re
import shlex

import pytest

from documented import COMMANDS, PAGES, ROOT, blocks, check, is_for_a_checkout, lay_out, lines, run_forked


@pytest.fixture
def workplace(tmp_path):
    lay_out(tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", list(blocks("bash")))
@pytest.mark.timeout(1800)  # a machine may be twice as slow as ours
def test_commands_run(block, workplace, forkserver):
    targets = re.findall(r"^([\w./-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in lines(block):
        words = shlex.split(line)
        if words[0] == "make":
            assert words[1] in targets, f"there is no target {words[1]}"
        elif words[0] == "python" and is_for_a_checkout(line):
            assert (ROOT / words[1]).is_file(), line  # benchmarks are run by `make bench`
        elif words[0] == "git":
            assert words[1] == "clone", line
        elif words[0] != "cd":
            assert words[0] in COMMANDS, f"who runs {words[0]}?"
            check(run_forked(forkserver, line, workplace), line)


@pytest.mark.parametrize("block", list(blocks("python")))
def test_python_runs(block, workplace, forkserver):
    done = forkserver.run(["-c", block], workplace)
    assert done.returncode == 0, done.stderr


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_changelog_decisions_and_log_are_kept():
    assert "## Unreleased" in (ROOT / "CHANGELOG.md").read_text()
    listed = re.findall(r"\((\d{4}-[\w-]+\.md)\)", (ROOT / "docs/decisions/README.md").read_text())
    assert listed == sorted(path.name for path in (ROOT / "docs/decisions").glob("0*.md"))
