"""The results of a benchmark."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One implementation at one batch size.

    Attributes:
        library: "imagegpt" (our sampler) or "transformers" (its ImageGPT's `generate`).
        batch: batch size, images.
        seconds: per batch, in each round.
        ms_per_pixel: median time of a step, which samples one pixel of each image.
        images_per_s: whole images at that rate.
        roofline_ms: lower bound of the time of a step if memory bandwidth were the only limit, on average over the
            sampled pixels.
        bandwidth_fraction: of the read bandwidth that was used, `roofline_ms / ms_per_pixel`.
        peak_bytes: of memory while sampling; None if unknown or not measured.
        weight_and_cache_bytes: size of the weights, and of the keys and values of the images.
        speedup: over the fastest of transformers at this batch size: median, min and max over the rounds.
        speedup_over_sequential: of the parallel decoder: median, min and max over the rounds.
        pixels_per_pass: of the parallel decoder: accepted per image and pass, on average.
        passes_by_length: of the parallel decoder: number of passes by number of positions fed.
    """

    library: Literal["imagegpt", "transformers"]
    precision: str
    decoder: str
    batch: int
    seconds: list[float]
    ms_per_pixel: float
    images_per_s: float
    roofline_ms: float
    bandwidth_fraction: float
    peak_bytes: int | None
    weight_and_cache_bytes: int
    speedup: dict[str, float] | None
    speedup_over_sequential: dict[str, float] | None
    pixels_per_pass: float | None
    passes_by_length: dict[int, int] | None


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """The result of `run_benchmark`.

    Attributes:
        num_pixels: sampled of each image.
        image_pixels: of a whole image.
        estimated_full_s: estimated duration with whole images, if fewer pixels were chosen because of it.
        read_bytes_per_s: read bandwidth, "best" (for the roofline) and "median".
        greedy_pixels_match: whether both libraries produced the same greedy pixels in float32; None if not compared.
        decoders_match: whether both decoders sampled the same pixels in float32; None unless both were measured.
        not_compared: why transformers was not measured.
        measurements: in the order measured.
    """

    num_pixels: int
    image_pixels: int
    estimated_full_s: float | None
    read_bytes_per_s: dict[str, float]
    greedy_pixels_match: bool | None
    decoders_match: bool | None
    not_compared: str | None
    measurements: list[Measurement]
