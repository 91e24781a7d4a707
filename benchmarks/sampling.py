"""How long do images take, beside transformers' ImageGPT and its `generate` on the same weights, and in what memory?

    python benchmarks/sampling.py                        # iGPT-S, whole images, 1 at a time, three precisions
    python benchmarks/sampling.py --batch 8
    python benchmarks/sampling.py --batch 32 --reference-pixels 32   # transformers over five stretches of 32 pixels
    python benchmarks/sampling.py --parallel             # parallel against sequential: digits, iGPT-S
    python benchmarks/sampling.py --parallel --model digits --repeats 9

The first form puts our sequential decoder beside transformers in float32 with its dynamic cache. All draw
from the full distribution (temperature 1, top_k=0 where the default is 50); before anything is timed both draw the same
likeliest pixels in float32. The roofline is the time it takes to read weights, keys and values once, at the
best bandwidth measured in this run. Memory is that of a process of its own, beside weights, keys and values.

The second form draws images one at a time with both decoders, the same seeds for both in a round.
Everything is measured by `imagegpt.benchmarking`, which `imagegpt bench` shows, too.
"""

import argparse
import statistics
import sys
from dataclasses import asdict
from typing import get_args

import torch

from _common import finish, parser, print_ratio
from imagegpt.benchmarking import DECODERS, PRECISIONS, BenchOptions, BenchResult, Measurement, run_benchmark
from imagegpt.sampling import BackendName


def main() -> None:
    options = parser(__doc__)
    options.set_defaults(repeats=3)
    options.add_argument("--model", help="small, medium, large, or a trained model; several as in digits,small")
    options.add_argument("--batch", type=int, default=1, help="images made at once")
    options.add_argument("--precisions", default=None, help="some of float32,bfloat16,int8")
    options.add_argument("--pixels", type=int, help="of each image; all if nothing is said")
    options.add_argument("--reference-pixels", type=int, help="time transformers over five stretches of so many pixels")
    options.add_argument("--no-compare", action="store_true", help="leave transformers out")
    options.add_argument("--no-memory", action="store_true", help="do not measure memory")
    options.add_argument("--parallel", action="store_true", help="measure parallel against sequential decoding")
    options.add_argument("--backend", default="auto", choices=["auto", *get_args(BackendName)], help="of our sampler")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = options.parse_args()
    torch.set_num_threads(options.threads)
    results = compare_decoders(options) if options.parallel else [compare_libraries(options)]
    finish("sampling", options, {"results": results})


def compare_libraries(options: argparse.Namespace) -> dict:
    """Print and return how our sequential decoder does beside transformers."""
    model = options.model or "small"
    asked = BenchOptions(
        model=model,
        batches=[options.batch],
        precisions=(options.precisions or ",".join(PRECISIONS)).split(","),
        num_pixels=options.pixels or _pixels_of(model),
        repeats=options.repeats,
        device=options.device,
        backend=options.backend,
        compare=not options.no_compare,
        reference_precisions=["float32"],
        reference_pixels=options.reference_pixels,
        memory=not options.no_memory,
    )
    result = run_benchmark(asked, _tell)
    print(f"{model}, {options.batch} x {result.num_pixels} pixels, {options.device}, {options.threads} threads")
    print(f"same greedy pixels in float32: {result.same_greedy_pixels}")
    best, median = (result.read_bytes_per_s[name] / 1e9 for name in ("best", "median"))
    print(f"memory is read at {best:.1f} GB/s at best, {median:.1f} in the median; roofline: by the best")
    if options.reference_pixels and not options.no_compare:
        print(
            f"transformers: NOT whole images, but interpolated between 5 stretches of {options.reference_pixels} pixels"
        )
    for one in result.measurements:
        print(_line(one, result.num_pixels))
    for one in result.measurements:
        if one.speedup is not None:
            print_ratio(f"{one.who} {one.precision} over transformers float32", one.speedup)
    return asdict(result)


def compare_decoders(options: argparse.Namespace) -> list[dict]:
    """Print and return how our parallel decoder does beside the sequential one."""
    return [
        {"model": model, **asdict(_compare_decoders(options, model))}
        for model in (options.model or "digits,small").split(",")
    ]


def _compare_decoders(options: argparse.Namespace, model: str) -> BenchResult:
    asked = BenchOptions(
        model=model,
        batches=[options.batch],
        precisions=(options.precisions or "float32").split(","),
        decoders=DECODERS,
        backend=options.backend,
        num_pixels=options.pixels or _pixels_of(model),
        repeats=options.repeats,
        device=options.device,
        compare=False,
        memory=False,
    )
    result = run_benchmark(asked, _tell)
    print(f"{model}, {options.batch} image(s) of {result.num_pixels} pixels")
    print(f"  same pixels by both decoders in float32: {result.same_parallel_images}")
    for one in result.measurements:
        print(f"  {one.precision} {one.decoder:<10}  {_spread(one.seconds, 1e3)} ms a batch")
        if one.over_sequential is None or one.pixels_per_pass is None:
            continue
        passes = result.num_pixels / one.pixels_per_pass
        print(
            f"    {passes:.1f} passes an image ({passes / result.num_pixels:.1%} of its pixels), "
            f"{one.pixels_per_pass:.2f} pixels a pass; passes by positions fed: {one.run_lengths}"
        )
        print_ratio(f"    {one.precision}: parallel over sequential", one.over_sequential)
    return result


def _line(one: Measurement, num_pixels: int) -> str:
    text = f"{one.who + ' ' + one.precision:<20} {_spread(one.seconds, 1e3 / num_pixels)} ms a pixel"
    text += f"   {one.images_per_s:.4g} images/s   roofline {one.floor_ms:.2f} ms, share {one.share:.0%}"
    if one.peak_bytes is None:
        return text
    held = f"weights + cache {one.held_bytes / 1e6:,.0f}: {one.peak_bytes / one.held_bytes - 1:+.0%}"
    return f"{text}   peak {one.peak_bytes / 1e6:,.0f} MB ({held})"


def _spread(seconds: list[float], scale: float) -> str:
    low, middle, high = (scale * value for value in (min(seconds), statistics.median(seconds), max(seconds)))
    return f"{middle:9.3f} ({low:.3f} .. {high:.3f})"


def _pixels_of(model: str) -> int:
    """Those of whole images: said outright, so that nothing is left out to save time."""
    from imagegpt.benchmarking.implementations import config_of

    return config_of(model).n_positions


def _tell(what: str, done: int, total: int) -> None:
    print(f"{done}/{total} {what}", file=sys.stderr)


if __name__ == "__main__":
    main()
