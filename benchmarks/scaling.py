"""What do a million images cost? Encode them, train on them with two processes, and sample many: memory and overhead.

    python benchmarks/scaling.py                          # about an hour on two cores
    python benchmarks/scaling.py --num-images 100000 --num-samples 10000

The images are synthetic, 4 x 4 pixels in grey, so that what remains is the cost of being an image: reading its place,
hashing it, shuffling it, writing it. Each stage runs the command line in processes of its own; their peak memory is the
largest VmHWM of /proc, sampled ten times a second. Each stage also runs with a tenth of the images: the difference of
the peaks over the difference of the counts is the memory per image. The last line of the output is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from imagegpt.benchmarking import timing

SIDE, NUM_LEVELS = 4, 16
MODEL = {"n_layer": 2, "n_embd": 32, "n_head": 2, "use_bias": False}


def peaks_of(command: list[str], folder: Path) -> tuple[float, list[int]]:
    """Run a command; its seconds, and the peak memory in bytes of each process that lasted for a second."""
    start, peaks, seen = time.perf_counter(), {}, {}
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        while process.poll() is None:
            for pid in family(process.pid):
                peaks[pid] = max(peaks.get(pid, 0), peak_bytes(pid))
                seen[pid] = seen.get(pid, 0) + 1
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\n{(folder / 'log.txt').read_text()[-2000:]}")
    return time.perf_counter() - start, sorted(peaks[pid] for pid in peaks if seen[pid] >= 10)


def family(pid: int) -> Iterator[int]:
    """A process and all its descendants."""
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from family(int(child))


def peak_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def write_images(path: Path, num: int) -> None:
    """Grey images that all differ: their number in base 16, with noise below."""
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(num, SIDE, SIDE))
    numbers = np.arange(num)
    for place in range(SIDE * SIDE):
        digit = numbers // NUM_LEVELS**place % NUM_LEVELS
        images[:, place // SIDE, place % SIDE] = digit * 17
    images.flush()


def write_recipe(path: Path, data: str) -> None:
    recipe = {
        "model": MODEL,
        "data": {"train": data},
        "training": {"num_steps": 50, "batch_size": 64, "learning_rate": 0.003, "warmup_steps": 5},
        "monitoring": {"validate_every": 50, "checkpoint_every": 50, "validation_images": 1000, "samples": 0},
    }
    path.write_text(json.dumps(recipe))  # JSON is YAML


def stages(folder: Path, num_images: int, num_samples: int) -> Iterator[tuple[str, int, list[str]]]:
    """Name, number of images and command of each stage."""
    imagegpt = [sys.executable, "-m", "imagegpt"]
    write_images(folder / "images.npy", num_images)
    palette = ["--palette", "palette", "--size", str(SIDE)]
    fit = [
        "palette",
        "fit",
        "images.npy",
        "--grey",
        "--colors",
        str(NUM_LEVELS),
        "--size",
        str(SIDE),
        "--out",
        "palette",
    ]
    peaks_of([*imagegpt, *fit], folder)
    yield "encode", num_images, [*imagegpt, "encode", "images.npy", "encoded", *palette, "--workers", "2"]
    write_recipe(folder / "recipe.yaml", "encoded")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "imagegpt"]
    yield "train, 50 steps", num_images, [*launch, "train", "recipe.yaml", "--out", "model", "--device", "cpu"]
    sample = ["sample", "--model", "./model", "--num", str(num_samples), "--format", "npz", "--out", "samples"]
    yield "sample", num_samples, [*imagegpt, *sample]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--num-images", type=int, default=1_000_000, help="to encode and train on (default 1000000)")
    options.add_argument("--num-samples", type=int, default=100_000, help="to sample (default 100000)")
    arguments = options.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows: dict[str, dict[str, float]] = {}
    for factor in (10, 1):
        with tempfile.TemporaryDirectory() as name:
            for stage, num, command in stages(
                Path(name), arguments.num_images // factor, arguments.num_samples // factor
            ):
                seconds, peaks = peaks_of(command, Path(name))
                few = rows.get(stage)
                rows[stage] = {"images": num, "seconds": seconds, "processes": len(peaks), "peak_bytes": peaks[-1]}
                if few is not None:
                    more = num - few["images"]
                    rows[stage]["bytes_per_image"] = (peaks[-1] - few["peak_bytes"]) / more
                    rows[stage]["microseconds_per_image"] = 1e6 * (seconds - few["seconds"]) / more
                print(
                    f"{stage}: {num:,} images, {seconds:.1f} s, largest process {peaks[-1] / 1e6:,.0f} MB",
                    file=sys.stderr,
                )

    for stage, row in rows.items():
        print(
            f"{stage:16} {row['images']:9,} images  {row['seconds']:7.1f} s  {row['processes']} processes  "
            f"{row['peak_bytes'] / 1e6:6,.0f} MB at most  {row['bytes_per_image']:7.1f} bytes and "
            f"{row['microseconds_per_image']:7.1f} us per further image"
        )
    print(json.dumps({"benchmark": "scaling", **timing.environment(f"python {sys.argv[0]}"), "stages": rows}))


if __name__ == "__main__":
    main()
