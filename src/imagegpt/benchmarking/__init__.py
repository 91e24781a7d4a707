"""Benchmarks of sampling: time, memory, and how close both come to the hardware's limits.

Inside: the options and results (`options`, `results`), the implementations that are compared (`implementations`: our
sampler, and the `generate` of transformers' ImageGPT on the same weights), `run`, which measures them, and the tools it
shares with the scripts in `benchmarks/` (`timing`, `memory`).

In: `BenchmarkOptions`. Out: `BenchmarkResult`, which `imagegpt bench` prints.

Sampling is memory-bound: each pixel needs every weight, and the keys and values of all earlier pixels. The roofline is
the time to read these bytes once at the best bandwidth measured in the same run:

    roofline = bytes per step / read bandwidth        bandwidth fraction = roofline / measured time

Models below some ten megabytes stay in the CPU's caches, where the fraction says little.

- Time: at each batch size every implementation warms up first. Then all of them, and a measurement of the read
  bandwidth, run once per round, so that changes in the machine's speed affect all alike. Short runs are repeated.
- Memory: the peak of a process never falls and includes all its models, so each implementation samples once more in a
  subprocess.
"""

from imagegpt.benchmarking.options import DECODERS, PRECISIONS, BenchmarkOptions
from imagegpt.benchmarking.results import BenchmarkResult, Measurement
from imagegpt.benchmarking.run import run_benchmark

__all__ = ["DECODERS", "PRECISIONS", "BenchmarkOptions", "BenchmarkResult", "Measurement", "run_benchmark"]
