"""CIFAR-10 out of the sheets of ../shared/data/cifar10: train.npz and test.npz, for `imagegpt encode`.

    python scripts/unpack_sheets.py --out cifar10

Each file holds `images`, uint8 (N, 32, 32, 3), and `labels`, 0 to 9, in the official order. The 93 images that are not
bit for bit CIFAR's (`exact.npy` beside the sheets) are left out, so train has 49,927 and test 9,980 images. The files
are not compressed: `imagegpt` maps them.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

SHEETS = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10"
NUM_TRAIN = 50_000
ROWS, COLUMNS, SIDE = 25, 40, 32  # of a sheet, and of an image


def sheet_images(path: Path) -> np.ndarray:
    """The 1,000 images of a sheet, uint8 (1000, 32, 32, 3)."""
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("RGB")).reshape(ROWS, SIDE, COLUMNS, SIDE, 3)
    return pixels.transpose(0, 2, 1, 3, 4).reshape(-1, SIDE, SIDE, 3)


def read_part(sheets: Path, part: str, *, keep_inexact: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of "train" or "test".

    Raises: FileNotFoundError if the sheets are not there.
    """
    paths = sorted(sheets.glob(f"{part}_*.webp"))
    if not paths:
        raise FileNotFoundError(f"there are no sheets {part}_*.webp in {sheets}: give their folder with --sheets")
    here = slice(None, NUM_TRAIN) if part == "train" else slice(NUM_TRAIN, None)
    images = np.concatenate([sheet_images(path) for path in paths])
    labels = np.load(sheets / "labels.npy")[here]
    exact = np.load(sheets / "exact.npy")[here].astype(bool)
    chosen = np.ones_like(exact) if keep_inexact else exact
    return images[chosen], labels[chosen].astype(np.int64)


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("cifar10"), help="the folder to make (default cifar10)")
    parser.add_argument("--sheets", type=Path, default=SHEETS, help="where the sheets are")
    arguments = parser.parse_args()
    try:
        parts = {part: read_part(arguments.sheets, part) for part in ("train", "test")}
        arguments.out.mkdir(parents=True, exist_ok=True)
        for part, (images, labels) in parts.items():
            temporary = arguments.out / f".{part}.tmp.npz"
            np.savez(temporary, images=images, labels=labels)
            temporary.replace(arguments.out / f"{part}.npz")
            print(f"{len(images):,} images: {arguments.out / part}.npz")  # noqa: T201
    except OSError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
