"""How fast is encoding 60,000 images to ids on disk? Decode, resize, quantise and write, from four kinds of source.

    python benchmarks/encode_dataset.py                 # CIFAR-10 of ../shared/data, two workers
    python benchmarks/encode_dataset.py --num-images 6000 --workers 1 --repeats 3

The images are first written, untimed, as PNG files in parquet, a folder of PNG files, an .npz file and CIFAR's binary
file. Each source is then encoded to a new folder, and timed including the start of the workers; the ids must be the
same. `datasets` converts parquet to its cache in the first round only, so that round is reported separately. Without
the data the images are noise, which compresses worse. The last line of the output is JSON.
"""

import argparse
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TARGET = 3000  # images/s on two cores


def cifar_images(num: int) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    paths = [*sorted((DATA / "cifar10").glob("train_*.webp")), *sorted((DATA / "cifar10").glob("test_*.webp"))]
    sheets = []
    for path in paths[: -(-num // 1000)]:
        sheet = np.asarray(Image.open(path).convert("RGB")).reshape(25, 32, 40, 32, 3)
        sheets.append(sheet.transpose(0, 2, 1, 3, 4).reshape(1000, 32, 32, 3))
    return np.concatenate(sheets)[:num], np.load(DATA / "cifar10" / "labels.npy")[:num].astype(np.int64)


def noise(num: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (num, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, num)


def write_sources(place: Path, images: np.ndarray, labels: np.ndarray) -> dict[str, Path]:
    """The same images as four kinds of source, in the same order."""
    import pyarrow
    from PIL import Image
    from pyarrow import parquet

    files = []
    (place / "folder").mkdir()
    for index, image in enumerate(images):
        content = io.BytesIO()
        Image.fromarray(image).save(content, "PNG")
        files.append(content.getvalue())
        (place / "folder" / f"{index:06d}.png").write_bytes(files[-1])
    cells = [{"bytes": content, "path": f"{index}.png"} for index, content in enumerate(files)]
    table = pyarrow.table({"img": cells, "label": labels})
    parquet.write_table(table, place / "images.parquet", row_group_size=1000)
    np.savez(place / "images.npz", images=images, labels=labels)
    records = np.concatenate(
        [labels[:, None].astype(np.uint8), images.transpose(0, 3, 1, 2).reshape(len(images), -1)], 1
    )
    records.tofile(place / "images.bin")
    return {
        "parquet": place / "images.parquet",
        "PNG folder": place / "folder",
        "npz": place / "images.npz",
        "CIFAR binary": place / "images.bin",
    }


def read_all_ids(folder: Path) -> bytes:
    import hashlib

    from imagegpt.data.encoded import EncodedDataset

    encoded = EncodedDataset(folder)
    return hashlib.sha256(encoded.read(range(len(encoded))).astype("<u2").tobytes()).digest()


def measure(sources: dict[str, Path], place: Path, workers: int, repeats: int) -> dict[str, list[float]]:
    """Seconds per round for each source; the ids must be the same."""
    from imagegpt.images.palette import ColorPalette
    from imagegpt.images.processor import ImageGPTImageProcessor
    from imagegpt.jobs.encode import encode

    with_data = (DATA / "palette").is_dir()
    palette = ColorPalette.load(DATA / "palette") if with_data else ColorPalette.grey(256)
    processor = ImageGPTImageProcessor(palette, size=32)
    seconds: dict[str, list[float]] = {name: [] for name in sources}
    found = set()
    for round_number in range(repeats):
        for name, source in sources.items():
            out = place / f"{source.stem}-{source.suffix}-{round_number}"
            start = time.perf_counter()
            encode(source, out, processor, num_workers=workers)
            seconds[name].append(time.perf_counter() - start)
            print(f"round {round_number + 1}, {name}: {seconds[name][-1]:.1f} s", file=sys.stderr)
            found.add(read_all_ids(out))
    if len(found) > 1:
        raise SystemExit("the sources gave different ids: the times are meaningless")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-images", type=int, default=60_000, help="images (default 60000)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--repeats", type=int, default=2, help="rounds (default 2)")
    parser.add_argument("--no-data", action="store_true", help="use noise even if ../shared/data exists")
    arguments = parser.parse_args()
    with_data = (DATA / "cifar10").is_dir() and not arguments.no_data
    images, labels = (cifar_images if with_data else noise)(arguments.num_images)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        os.environ["HF_DATASETS_CACHE"] = str(place / "cache")
        seconds = measure(write_sources(place, images, labels), place, arguments.workers, arguments.repeats)

    rates = {name: [len(images) / one for one in several] for name, several in seconds.items()}
    print(f"{len(images):,} images of {'CIFAR-10' if with_data else 'noise'}, {arguments.workers} workers, end to end")
    for name, several in rates.items():
        print(
            f"  {name:14} {statistics.median(several):8,.0f} images/s ({min(several):,.0f} to {max(several):,.0f}), "
            f"first {several[0]:,.0f}; {'at least' if min(several) >= TARGET else 'below'} the target of {TARGET:,}"
        )
    settings = {"images": "cifar10" if with_data else "noise", **vars(arguments)}
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    facts = {"python": platform.python_version(), "numpy": np.__version__, "machine": machine}
    print(json.dumps({"benchmark": "encode_dataset", "images/s": rates, "settings": settings, **facts}))


if __name__ == "__main__":
    main()
