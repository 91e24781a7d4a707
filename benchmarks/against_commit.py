"""Does this code sample faster than another commit, on this machine and in the same minutes?

    python benchmarks/against_commit.py e41675a                # iGPT-S, whole images, batch 1, three precisions
    python benchmarks/against_commit.py e41675a --model digits --batch 8 --repeats 15

The commit is checked out into a temporary folder. Each version runs in its own process, which prepares the model and
warms up; then they sample whole images in alternation. The commit's `Sampler` must take `precision`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORKER = "--worker"


def main() -> None:
    from _common import finish, measure, parser, print_speedup, print_times
    from imagegpt.benchmarking.timing import speedup

    options = parser(__doc__)
    options.add_argument("commit", help="to compare with")
    options.add_argument("--model", default="small", help="small, medium, large, or a trained model")
    options.add_argument("--batch", type=int, default=1, help="images at a time")
    options.add_argument("--pixels", type=int, default=1024, help="per image, if the model has as many")
    options.add_argument("--precisions", default="float32,bfloat16,int8")
    options = options.parse_args()
    results = {}
    with _checked_out(options.commit) as old:
        for precision in options.precisions.split(","):
            with _worker(old, precision, options) as before, _worker(ROOT, precision, options) as now:
                seconds = measure({"before": before, "now": now}, options.repeats)
            print(f"{options.model}, {options.batch} images, {precision}")
            print_times(seconds)
            results[precision] = {"seconds": seconds, "speedup": speedup(seconds, "before", "now")}
            print_speedup(f"{precision}, now over before", results[precision]["speedup"])
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
    """Start a process that imports imagegpt from a tree; yield a function that makes it sample once."""
    arguments = [options.model, precision, options.batch, options.pixels, options.threads]
    command = [sys.executable, __file__, WORKER, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def sample_once() -> None:
            stdin.write("go\n")
            stdin.flush()
            if stdout.readline() != "done\n":
                raise RuntimeError(f"the process of {tree} ended: see its message above")

        yield sample_once
        stdin.close()


def _work(model: str, precision: str, batch: int, num_pixels: int, threads: int) -> None:
    """The worker: sample whenever a line arrives. It uses only names that old commits have as well."""
    import torch

    from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling, ImageGPTPipeline
    from imagegpt.sampling import Sampler

    torch.set_num_threads(threads)
    if model in ("small", "medium", "large"):
        torch.manual_seed(0)
        loaded = ImageGPTForCausalImageModeling(ImageGPTConfig.from_size(model)).eval()
    else:
        loaded = ImageGPTPipeline.from_pretrained(model, device="cpu").model
    sampler = Sampler(loaded, precision=precision, in_place=True)
    num_pixels = min(num_pixels, sampler.model.config.n_positions)
    for index, _ in enumerate(sys.stdin):
        sampler.generate(seeds=range(index * batch, (index + 1) * batch), num_pixels=num_pixels)
        print("done", flush=True)


if __name__ == "__main__":
    if WORKER in sys.argv:
        model, precision, *numbers = sys.argv[sys.argv.index(WORKER) + 1 :]
        _work(model, precision, *map(int, numbers))
    else:
        main()
