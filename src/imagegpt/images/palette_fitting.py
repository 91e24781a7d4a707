"""Fitting of a palette: k-means on a uniform sample of pixels from a stream of images.

Axis letters: N pixels, V palette colours.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any, cast

import numpy as np
from jaxtyping import Shaped, UInt8, UInt32

from imagegpt.common import ranges
from imagegpt.images.palette_checks import check_pixels

_MAX_ITERATIONS = 50  # of k-means
_MAX_DISTANCES = 1 << 36  # computed by k-means, takes minutes; a million distinct pixels and 512 colours need half


def fit_colors(
    images: Iterable[Shaped[np.ndarray, "..."]], num_colors: int, *, seed: int, grey: bool, max_pixels: int
) -> UInt8[np.ndarray, "v 3"]:
    """Return the colours of `ColorPalette.fit`, which documents the arguments.

    Steps: sample pixels uniformly; initialise with scikit-learn's MiniBatchKMeans; refine with KMeans on the distinct
    colours, weighted by frequency; round centres to 8 bits, so that encoding is exact and a palette colour is its own
    nearest; replace centres that coincide after rounding by the sampled colours with the largest error (pixels times
    squared distance).
    """
    num_colors, seed = ranges.COLORS.check("num_colors", num_colors), ranges.FITTING_SEED.check("seed", seed)
    max_pixels = ranges.PALETTE_PIXELS.check("max_pixels", max_pixels)
    if max_pixels < num_colors:
        raise ValueError(f"max_pixels is {max_pixels}, fewer than num_colors = {num_colors}: raise it")
    distinct, sample = _sample_pixels(images, num_colors, seed, grey, max_pixels)
    if len(distinct) < num_colors:
        kind = "grey levels" if grey else "colours"
        if len(distinct) < ranges.COLORS.min:
            raise ValueError(f"the images have only 1 of the at least 2 {kind} that a palette needs: add other images")
        raise ValueError(
            f"the images have {len(distinct)} distinct {kind}, fewer than num_colors = {num_colors}: "
            f"ask for {len(distinct)} or fewer"
        )
    colors = _unpack(distinct) if len(distinct) == num_colors else _k_means(sample, num_colors, seed)
    return colors[np.lexsort((*colors.T[::-1], _luma(colors)))]


def _k_means(sample: UInt32[np.ndarray, " n"], num_colors: int, seed: int) -> UInt8[np.ndarray, "v 3"]:
    from sklearn.cluster import KMeans, MiniBatchKMeans  # slow to import, needed only for fitting
    from sklearn.metrics import pairwise_distances_argmin
    from threadpoolctl import threadpool_limits

    candidates, counts = np.unique(sample, return_counts=True)
    if len(candidates) < num_colors:
        raise ValueError(
            f"the {len(sample)} sampled pixels have {len(candidates)} distinct colours, fewer than num_colors = "
            f"{num_colors}: raise max_pixels"
        )
    # On CIFAR-10 with 512 colours, not reassigning rarely used centres gains 0.13 dB over the default.
    k_means = MiniBatchKMeans(num_colors, batch_size=16_384, random_state=seed, reassignment_ratio=0)
    with threadpool_limits(1):  # sums over several threads are not reproducible
        start = cast(Any, k_means.fit(_unpack(sample).astype(np.float32)).cluster_centers_)
        init: Any = {"init": start.astype(np.float64), "n_init": 1}  # scikit-learn annotates both as str
        max_iter = max(1, min(_MAX_ITERATIONS, _MAX_DISTANCES // (len(candidates) * num_colors)))
        k_means = KMeans(num_colors, max_iter=max_iter, random_state=seed, **init)
        centres = k_means.fit(_unpack(candidates).astype(np.float64), sample_weight=counts).cluster_centers_
    colors = np.unique(np.rint(centres).clip(0, 255).astype(np.uint8), axis=0)
    missing = num_colors - len(colors)
    if missing:
        pixels = _unpack(candidates)
        nearest = pairwise_distances_argmin(pixels.astype(np.float64), colors.astype(np.float64))
        gap = pixels.astype(np.int64) - colors[nearest]
        # There are at least num_colors candidates, so at least `missing` of them are not yet in `colors`.
        worst = np.argsort(-(counts * np.square(gap).sum(axis=1)), kind="stable")[:missing]
        colors = np.concatenate([colors, pixels[worst]])
    return colors


def _sample_pixels(
    images: Iterable[np.ndarray], num_colors: int, seed: int, grey: bool, max_pixels: int
) -> tuple[UInt32[np.ndarray, " d"], UInt32[np.ndarray, " n"]]:
    """Return the distinct colours (not all, if there are more than `num_colors`) and a uniform sample of `max_pixels`.

    Colours are packed in 24 bits. Every pixel gets a random key and those with the smallest keys are sampled, so the
    sample does not depend on how the pixels are divided into arrays.
    """
    rng = np.random.default_rng(seed)
    distinct, sample, keys, limit = np.empty(0, np.uint32), np.empty(0, np.uint32), np.empty(0), math.inf
    for block in pixel_blocks(images):
        r, g, b = (np.repeat(_luma(block)[:, None], 3, axis=1) if grey else block).astype(np.uint32).T
        codes = r << 16 | g << 8 | b
        if len(distinct) <= num_colors:
            distinct = np.unique(np.concatenate([distinct, codes]))
        new_keys = rng.random(len(codes))
        is_small = new_keys < limit
        sample, keys = np.concatenate([sample, codes[is_small]]), np.concatenate([keys, new_keys[is_small]])
        if len(keys) > max_pixels:
            limit = np.partition(keys, max_pixels)[max_pixels]
            sample, keys = sample[keys < limit], keys[keys < limit]
    if not len(distinct):
        raise ValueError("there are no pixels to fit a palette to: give at least one image")
    return distinct, sample


def _unpack(codes: UInt32[np.ndarray, " n"]) -> UInt8[np.ndarray, "n 3"]:
    return np.stack([codes >> 16, codes >> 8 & 0xFF, codes & 0xFF], axis=1).astype(np.uint8)


def pixel_blocks(images: Iterable[np.ndarray], size: int = 1 << 18) -> Iterator[UInt8[np.ndarray, "n 3"]]:
    """Yield the pixels of all images, at most `size` at a time."""
    for image in [images] if isinstance(images, np.ndarray) else images:
        check_pixels(image)
        pixels = image.reshape(-1, 3)
        for start in range(0, len(pixels), size):
            yield pixels[start : start + size]


def _luma(rgb: UInt8[np.ndarray, "n 3"]) -> UInt8[np.ndarray, " n"]:
    """Return Rec. 601 luma in Pillow's fixed-point arithmetic, the same 8-bit value as `convert("L")`."""
    r, g, b = rgb.astype(np.uint32).T
    return ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16).astype(np.uint8)
