"""How long does `make demo` take on an idle and on a busy machine, for different wait policies of OpenMP's threads?

    python benchmarks/busy_machine.py                                # the demo, three rounds: 15 minutes on two cores
    python benchmarks/busy_machine.py --tasks sample-1,sample-8,train,encode --busy 0 --repeats 5
    python benchmarks/busy_machine.py --policy sleeping=OMP_WAIT_POLICY:passive --policy one=OMP_NUM_THREADS:1

Each task is a whole run of an `imagegpt` command in a subprocess. "now" is the wait policy of the command line,
"before" libgomp's default. Busy programs are endless loops in Python, one per core. The script also reports whether all
runs produced the same images or ids. All files go to a temporary folder.
"""

import argparse
import contextlib
import hashlib
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from _common import finish, measure, print_speedup, print_times
from imagegpt.benchmarking.timing import Seconds, speedup, time_call

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"
POLICIES = {"before": {"GOMP_SPINCOUNT": "300000"}, "now": {}}
WIDER = ("n_embd=256", "n_head=4", "n_layer=6")
TASKS = {
    "demo": "complete PHOTOS --model cifar10 --keep 0.5 --num 8 --seed 0 --out made.png",
    "sample-1": "sample --model cifar10 --seed 0 --num 1 --out made.png",
    "sample-8": "sample --model cifar10 --seed 0 --num 8 --out made.png",
    "train": f"train digits --out made --set training.num_steps=60 {' '.join(f'--set model.{one}' for one in WIDER)}",
    "encode": "encode ../images.npy made --palette cifar10 --size 32",
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=3, help="timed rounds; each task runs once in each")
    options.add_argument("--tasks", default="demo", help=f"some of {','.join(TASKS)}")
    options.add_argument("--busy", type=int, default=os.cpu_count(), help="busy programs; 0: the idle machine only")
    options.add_argument("--policy", action="append", default=[], help="one more: NAME=VARIABLE:VALUE,VARIABLE:VALUE")
    options.add_argument("--out", type=Path, help="also append the JSON line to this file")
    options = options.parse_args()
    policies = POLICIES | dict(map(_parse_policy, options.policy))
    tasks = options.tasks.split(",")
    if unknown := [task for task in tasks if task not in TASKS]:
        raise SystemExit(f"there is no task {unknown[0]!r}: choose from {', '.join(TASKS)}")
    digests: dict[str, set[str]] = {task: set() for task in tasks}
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/images.npy", np.random.default_rng(0).integers(0, 256, (5000, 64, 64, 3), np.uint8))
        functions = {
            f"{task} {name}{' busy' if num_busy else ''}": _task_function(task, policy, num_busy, folder, digests[task])
            for task in tasks
            for num_busy in sorted({0, options.busy})
            for name, policy in policies.items()
        }
        seconds = measure(functions, options.repeats)
    print_times(seconds)
    ratios = {}
    for task in tasks:
        for name in policies:
            pairs = {f"{task} before": f"before over {name}"} if name != "before" else {}
            pairs |= {f"{task} {name} busy": f"{name}, busy over idle"} if options.busy else {}
            for slow, label in pairs.items():
                ratios[f"{task}: {label}"] = speedup(seconds, slow, f"{task} {name}")
                print_speedup(f"{task}: {label}", ratios[f"{task}: {label}"])
    is_same = {
        task: len(found) == 1 for task, found in digests.items() if task != "train"
    }  # training sums in another order
    print("all runs gave " + ("the same results" if all(is_same.values()) else f"DIFFERENT results: {is_same}"))
    finish("busy_machine", options, {"seconds": seconds, "ratios": ratios, "same_results": is_same})


def _parse_policy(text: str) -> tuple[str, dict[str, str]]:
    name, _, variables = text.partition("=")
    return name, dict(one.split(":") for one in variables.split(","))


def _task_function(
    task: str, policy: dict[str, str], num_busy: int, folder: str, digests: set[str]
) -> Callable[[], Seconds]:
    """A function that runs a task beside busy programs, and adds a hash of its output files to `digests`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    photos = sorted(map(str, PHOTOS.glob("*.png")))
    words = (photos if word == "PHOTOS" else [word] for word in TASKS[task].split())
    command = [sys.executable, "-m", "imagegpt", *itertools.chain(*words)]

    def run() -> Seconds:
        working_dir = Path(tempfile.mkdtemp(dir=folder))
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with _busy_programs(num_busy):
            elapsed = time_call(
                lambda: subprocess.run(command, cwd=working_dir, env=environment | policy, check=True, **silent)
            )
        files = sorted(path for path in working_dir.rglob("*") if path.suffix in (".png", ".arrow", ".safetensors"))
        assert files, f"{task} wrote no files"
        digests.add(hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest())
        return Seconds(elapsed)

    return run


@contextlib.contextmanager
def _busy_programs(num: int) -> Iterator[None]:
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


if __name__ == "__main__":
    main()
