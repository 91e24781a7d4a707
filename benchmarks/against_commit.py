"""Does this code sample faster than the code of another commit, on this machine and in the same minutes?

    python benchmarks/against_commit.py e41675a                # iGPT-S, whole images, 1 at a time, three precisions
    python benchmarks/against_commit.py e41675a --model digits --batch 8 --repeats 15

The commit is checked out into a temporary folder. Each of the two has a process of its own, which prepares the model
and warms up; then they take turns with whole images. It must be a commit whose `Sampler` takes `precision`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from _common import finish, measure, parser, print_ratio, print_times
from imagegpt.benchmarking.timing import ratio

ROOT = Path(__file__).parents[1]
WORKER = "--worker"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("commit", help="what to compare with")
    options.add_argument("--model", default="small", help="small, medium, large, or a trained model")
    options.add_argument("--batch", type=int, default=1, help="images made at once")
    options.add_argument("--pixels", type=int, default=1024, help="of each image, where the model has as many")
    options.add_argument("--precisions", default="float32,bfloat16,int8")
    options = options.parse_args()
    results = {}
    with _checked_out(options.commit) as old:
        for precision in options.precisions.split(","):
            with _worker(old, precision, options) as before, _worker(ROOT, precision, options) as now:
                seconds = measure({"before": before, "now": now}, options.repeats)
            print(f"{options.model}, {options.batch} images, {precision}")
            print_times(seconds)
            results[precision] = {"seconds": seconds, "ratio": ratio(seconds, "before", "now")}
            print_ratio(f"{precision}, before over now", results[precision]["ratio"])
    finish("against_commit", options, {"results": results})


@contextmanager
def _checked_out(commit: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", tree, commit], cwd=ROOT, check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)


@contextmanager
def _worker(tree: Path, precision: str, options: argparse.Namespace) -> Iterator[Callable[[], None]]:
    """A process that imports imagegpt from a tree; gives what has it make images once."""
    given = [options.model, precision, options.batch, options.pixels, options.threads]
    command = [sys.executable, __file__, WORKER, *map(str, given)]
    environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        into, answers = process.stdin, process.stdout

        def once() -> None:
            into.write("go\n")
            into.flush()
            if answers.readline() != "done\n":
                raise RuntimeError(f"the process of {tree} ended: its message is above")

        yield once
        into.close()


def _work(model: str, precision: str, batch: int, num_pixels: int, threads: int) -> None:
    """Make images whenever a line comes in."""
    import torch

    from imagegpt.benchmarking.implementations import model_of
    from imagegpt.sampling import Sampler

    torch.set_num_threads(threads)
    sampler = Sampler(model_of(model, torch.float32, "cpu"), precision=precision, in_place=True)
    num_pixels = min(num_pixels, sampler.model.config.n_positions)
    for turn, _ in enumerate(sys.stdin):
        sampler.generate(seeds=range(turn * batch, (turn + 1) * batch), num_pixels=num_pixels)
        print("done", flush=True)


if __name__ == "__main__":
    if WORKER in sys.argv:
        model, precision, *numbers = sys.argv[sys.argv.index(WORKER) + 1 :]
        _work(model, precision, *map(int, numbers))
    else:
        main()
