"""How fast is encoding images to ids? The palette's lookup table and the whole processor, and transformers' processor.

    python benchmarks/encode.py            # 32x32 images, OpenAI's palette and CIFAR-10 if ../shared/data has them
    python benchmarks/encode.py --num-images 10000 --repeats 9 --no-data

Everything runs on one core. Before the timing, the ids are compared with the reference's. Without the data, the images
are crops of scikit-learn's two photographs, and the palette is fitted to them. The last line of the output is JSON.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import torch
import transformers
from PIL import Image
from sklearn.datasets import load_sample_images
from threadpoolctl import threadpool_limits
from transformers.models.imagegpt.image_processing_pil_imagegpt import ImageGPTImageProcessorPil

from imagegpt.images.palette import ColorPalette
from imagegpt.images.processor import ImageGPTImageProcessor

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SIZE = {"height": 32, "width": 32}


def seconds(function: Callable[[], object], repeats: int) -> list[float]:
    """Durations of `repeats` calls, after a warm-up."""
    function()
    durations = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        durations.append(time.perf_counter() - start)
    return durations


def photo_crops(num: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    photos = load_sample_images().images
    crops = []
    for index in range(num):
        photo = photos[index % len(photos)]
        top, left = (rng.integers(0, side - 64) for side in photo.shape[:2])
        crops.append(photo[top : top + 64 : 2, left : left + 64 : 2])
    return np.stack(crops)


def cifar_images(num: int) -> np.ndarray:
    sheets = []
    for path in sorted((DATA / "cifar10").glob("train_*.webp"))[: -(-num // 1000)]:
        sheet = np.asarray(Image.open(path).convert("RGB")).reshape(25, 32, 40, 32, 3)
        sheets.append(sheet.transpose(0, 2, 1, 3, 4).reshape(1000, 32, 32, 3))
    return np.ascontiguousarray(np.concatenate(sheets)[:num])


def fitted_palette(images: np.ndarray) -> ColorPalette:
    """512 colours off the 8-bit grid, as OpenAI's are: ties on the grid are broken by chance in the reference."""
    clusters = ColorPalette.fit(images, max_pixels=1 << 18).clusters
    shift = np.random.default_rng(0).uniform(-0.3, 0.3, clusters.shape) / 127.5
    return ColorPalette(np.clip(clusters + shift, -1, 1))


def cold_seconds(palette: ColorPalette, pixels: np.ndarray, repeats: int) -> list[float]:
    """Durations of the first `encode` of a new palette."""
    durations = []
    for _ in range(repeats):
        fresh = ColorPalette(palette.clusters)
        start = time.perf_counter()
        fresh.encode(pixels)
        durations.append(time.perf_counter() - start)
    return durations


def rate(durations: list[float], num: int) -> dict[str, float]:
    speeds = sorted(num / duration for duration in durations)
    return {"median": statistics.median(speeds), "min": speeds[0], "max": speeds[-1]}


def measure(images: np.ndarray, palette: ColorPalette, num_reference: int, repeats: int) -> dict[str, object]:
    """Compare the ids, then measure: rates in images/s, times in seconds."""
    ours = ImageGPTImageProcessor(palette, size=SIZE, resize_mode="squash")
    reference = ImageGPTImageProcessorPil(clusters=palette.clusters.tolist(), size=SIZE)
    few = [Image.fromarray(image) for image in images[:num_reference]]
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    for name, group in {"small images": few, "photographs": photos}.items():
        theirs = np.asarray(reference(group, return_tensors="np")["input_ids"])
        if not np.array_equal(ours(group)["input_ids"], theirs):
            raise SystemExit(f"the ids of the {name} differ from the reference's: nothing to time")
    photo = np.asarray(photos[0])
    cold = {"one image": cold_seconds(palette, images[0], repeats), "one photo": cold_seconds(palette, photo, repeats)}
    return {
        "cold_s": {name: rate([1 / value for value in values], 1) for name, values in cold.items()},
        "encode, one batch": rate(seconds(lambda: palette.encode(images), repeats), len(images)),
        "encode, image by image": rate(
            seconds(lambda: [palette.encode(image) for image in images], repeats), len(images)
        ),
        "processor, one batch array": rate(seconds(lambda: ours(images, return_tensors="pt"), repeats), len(images)),
        "processor, PIL 32x32": rate(seconds(lambda: ours(few, return_tensors="pt"), repeats), len(few)),
        "reference, PIL 32x32": rate(seconds(lambda: reference(few, return_tensors="pt"), repeats), len(few)),
        "processor, PIL photos": rate(seconds(lambda: ours(photos, return_tensors="pt"), repeats), len(photos)),
        "reference, PIL photos": rate(seconds(lambda: reference(photos, return_tensors="pt"), repeats), len(photos)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-images", type=int, default=4000, help="images for the palette (default 4000)")
    parser.add_argument("--num-reference", type=int, default=64, help="of these, for both processors (default 64)")
    parser.add_argument("--repeats", type=int, default=7, help="timed repetitions of each (default 7)")
    parser.add_argument("--no-data", action="store_true", help="use photo crops even if ../shared/data exists")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)  # also for numpy and scikit-learn
    with_data = DATA.is_dir() and not arguments.no_data
    images = cifar_images(arguments.num_images) if with_data else photo_crops(arguments.num_images)
    palette = ColorPalette.load(DATA / "palette") if with_data else fitted_palette(images)
    results = measure(images, palette, arguments.num_reference, arguments.repeats)

    print(f"{len(images)} images of {'CIFAR-10' if with_data else 'photo crops'}, {palette}, one core; ids equal")
    for name, value in results.pop("cold_s").items():
        print(
            f"  cold, {name:22} {1e3 * value['median']:9.1f} ms ({1e3 * value['min']:.1f} to {1e3 * value['max']:.1f})"
        )
        results[f"cold, {name}, s"] = value
    for name, value in results.items():
        if not name.startswith("cold"):
            print(f"  {name:28} {value['median']:9,.0f} images/s ({value['min']:,.0f} to {value['max']:,.0f})")
    ratios = {
        kind: results[f"processor, PIL {kind}"]["median"] / results[f"reference, PIL {kind}"]["median"]
        for kind in ("32x32", "photos")
    }
    print(f"  ratio to the reference: {ratios['32x32']:.0f}x on 32x32 images, {ratios['photos']:.0f}x on photographs")
    versions = {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__}
    versions |= {"pillow": PIL.__version__, "transformers": transformers.__version__}
    settings = {"images": "cifar10" if with_data else "photo crops", **vars(arguments)}
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    summary = {"benchmark": "encode", "results": results, "ratio": ratios, "settings": settings, "versions": versions}
    print(json.dumps({**summary, "machine": machine}))


if __name__ == "__main__":
    main()
