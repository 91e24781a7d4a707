"""How fast this machine draws with a model, in how much memory, and how close that comes to what the hardware allows.

Drawing is bound by memory: each pixel needs every weight, and the keys and values of all pixels before it. The
yardstick is the time it takes to read these bytes once, as fast as this machine reads a large tensor:

    floor = bytes of a step / read bandwidth        share = floor / measured time

A small model (below some ten megabytes) stays in the processor's caches; then the share says little.

- Time (`timing`): for each batch size every contestant first draws to warm up, then they
  take turns, the reading of memory among them, so that a drift of the machine's speed falls on all alike. Small images
  are drawn again and again in a turn.
- Memory (`memory`): a process's peak never falls and counts all its models, so each contestant draws once more in a
  process of its own.
- Who takes part (`contestants`): our sampler in the precisions and with the decoders asked for, and the `generate` of
  transformers' ImageGPT on the same weights. `run` puts it together.

The scripts in `benchmarks/` time and report with the same functions.
"""

from imagegpt.benchmarking.run import DECODERS, PRECISIONS, BenchOptions, BenchResult, Measurement, run_benchmark

__all__ = ["DECODERS", "PRECISIONS", "BenchOptions", "BenchResult", "Measurement", "run_benchmark"]
