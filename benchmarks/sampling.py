"""How long does sampling take, and with how much memory, compared with transformers' `generate` on the same weights?

    python benchmarks/sampling.py                        # iGPT-S, whole images, batch 1, three precisions
    python benchmarks/sampling.py --batch 8
    python benchmarks/sampling.py --batch 32 --reference-pixels 32   # transformers over five spans of 32 pixels
    python benchmarks/sampling.py --parallel             # parallel and sequential decoding: digits, iGPT-S
    python benchmarks/sampling.py --parallel --model digits --repeats 9

The first form compares our sequential decoder with transformers in float32 with its dynamic cache. All sample from the
full distribution (temperature 1; top_k=0 where the default is 50). Before the timing, both produce the same greedy
pixels in float32. The roofline is the time to read weights, keys and values once, at the best bandwidth measured in
this run. Memory is the peak of a subprocess, compared with the size of weights, keys and values.

The second form samples images one at a time with both decoders, with the same seeds in a round. The measurements are
those of `imagegpt.benchmarking`, as in `imagegpt bench`.
"""

import argparse
import statistics
import sys
from dataclasses import asdict
from typing import get_args

import torch

from _common import finish, parser, print_speedup
from imagegpt.benchmarking import DECODERS, PRECISIONS, BenchmarkOptions, BenchmarkResult, Measurement, run_benchmark
from imagegpt.sampling import BackendName


def main() -> None:
    options = parser(__doc__)
    options.set_defaults(repeats=3)
    options.add_argument("--model", help="small, medium, large, or a trained model; several as in digits,small")
    options.add_argument("--batch", type=int, default=1, help="images at a time")
    options.add_argument("--precisions", default=None, help="some of float32,bfloat16,int8")
    options.add_argument("--pixels", type=int, help="per image; default: all")
    options.add_argument("--reference-pixels", type=int, help="time transformers over five spans of this length")
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
    """Compare our sequential decoder with transformers; print and return the result."""
    model = options.model or "small"
    benchmark = BenchmarkOptions(
        model=model,
        batches=[options.batch],
        precisions=(options.precisions or ",".join(PRECISIONS)).split(","),
        num_pixels=options.pixels or _num_pixels(model),
        repeats=options.repeats,
        device=options.device,
        backend=options.backend,
        compare=not options.no_compare,
        reference_precisions=["float32"],
        reference_pixels=options.reference_pixels,
        memory=not options.no_memory,
    )
    result = run_benchmark(benchmark, _report)
    print(f"{model}, {options.batch} x {result.num_pixels} pixels, {options.device}, {options.threads} threads")
    print(f"same greedy pixels in float32: {result.greedy_pixels_match}")
    best, median = (result.read_bytes_per_s[name] / 1e9 for name in ("best", "median"))
    print(f"read bandwidth: {best:.1f} GB/s at best, which is the roofline's, median {median:.1f}")
    if options.reference_pixels and not options.no_compare:
        print(f"transformers: NOT whole images, but interpolated between 5 spans of {options.reference_pixels} pixels")
    for one in result.measurements:
        print(_line(one, result.num_pixels))
    for one in result.measurements:
        if one.speedup is not None:
            print_speedup(f"{one.library} {one.precision} over transformers float32", one.speedup)
    return asdict(result)


def compare_decoders(options: argparse.Namespace) -> list[dict]:
    """Compare our parallel decoder with the sequential one; print and return the results."""
    return [
        {"model": model, **asdict(_compare_decoders(options, model))}
        for model in (options.model or "digits,small").split(",")
    ]


def _compare_decoders(options: argparse.Namespace, model: str) -> BenchmarkResult:
    benchmark = BenchmarkOptions(
        model=model,
        batches=[options.batch],
        precisions=(options.precisions or "float32").split(","),
        decoders=DECODERS,
        backend=options.backend,
        num_pixels=options.pixels or _num_pixels(model),
        repeats=options.repeats,
        device=options.device,
        compare=False,
        memory=False,
    )
    result = run_benchmark(benchmark, _report)
    print(f"{model}, {options.batch} image(s) of {result.num_pixels} pixels")
    print(f"  same pixels by both decoders in float32: {result.decoders_match}")
    for one in result.measurements:
        print(f"  {one.precision} {one.decoder:<10}  {_spread(one.seconds, 1e3)} ms per batch")
        if one.speedup_over_sequential is None or one.pixels_per_pass is None:
            continue
        passes = result.num_pixels / one.pixels_per_pass
        print(
            f"    {passes:.1f} passes per image ({passes / result.num_pixels:.1%} of its pixels), "
            f"{one.pixels_per_pass:.2f} pixels per pass; passes by positions fed: {one.passes_by_length}"
        )
        print_speedup(f"    {one.precision}: parallel over sequential", one.speedup_over_sequential)
    return result


def _line(one: Measurement, num_pixels: int) -> str:
    text = f"{one.library + ' ' + one.precision:<20} {_spread(one.seconds, 1e3 / num_pixels)} ms per pixel"
    text += f"   {one.images_per_s:.4g} images/s"
    text += f"   roofline {one.roofline_ms:.2f} ms, {one.bandwidth_fraction:.0%} of bandwidth"
    if one.peak_bytes is None:
        return text
    peak, expected = one.peak_bytes / 1e6, one.weight_and_cache_bytes / 1e6
    return f"{text}   peak {peak:,.0f} MB (weights + cache {expected:,.0f}: {peak / expected - 1:+.0%})"


def _spread(seconds: list[float], scale: float) -> str:
    low, middle, high = (scale * value for value in (min(seconds), statistics.median(seconds), max(seconds)))
    return f"{middle:9.3f} ({low:.3f} .. {high:.3f})"


def _num_pixels(model: str) -> int:
    """Those of whole images; given explicitly, so that `run_benchmark` does not choose fewer to save time."""
    from imagegpt.benchmarking.implementations import resolve_config

    return resolve_config(model).n_positions


def _report(activity: str, done: int, total: int) -> None:
    print(f"{done}/{total} {activity}", file=sys.stderr)


if __name__ == "__main__":
    main()
