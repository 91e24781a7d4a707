"""Run a benchmark of sampling; the docstring of the package describes the method."""

import itertools
import statistics
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch

from imagegpt.benchmarking import timing
from imagegpt.benchmarking.implementations import (
    DTYPES,
    ImageGPTRunner,
    Implementation,
    NotComparableError,
    Runner,
    TransformersRunner,
    greedy_pixels_match,
    load_or_init_model,
    resolve_config,
)
from imagegpt.benchmarking.memory import peak_bytes_in_subprocess
from imagegpt.benchmarking.options import DECODERS, BenchmarkOptions
from imagegpt.benchmarking.results import BenchmarkResult, Measurement
from imagegpt.config import ImageGPTConfig
from imagegpt.sampling import DecoderName
from imagegpt.sampling.session import Statistics

# (current activity, runs done, runs in total)
OnProgress = Callable[[str, int, int], None]

_NUM_TRIAL_PIXELS = 8
_NUM_COMPARED_PIXELS = 64
_NUM_SPANS = 5
_SEEDS_PER_RUN = 1 << 20
_MAX_TOTAL_S = 120.0
_MIN_RUN_S = 0.5  # shorter runs are repeated, with different seeds


def run_benchmark(options: BenchmarkOptions, on_progress: OnProgress | None = None) -> BenchmarkResult:
    """Measure sampling.

    Args:
        on_progress: called before each run with the current activity, and the number of runs done and in total.
    Raises: ValueError or OSError if the model does not exist or cannot be sampled, or an option does not suit it;
        MemoryError.
    """
    config = resolve_config(options.model)
    if options.num_pixels is not None and options.num_pixels > config.n_positions:
        raise ValueError(f"num_pixels is {options.num_pixels}: this model's images have {config.n_positions} pixels")
    num_pixels = options.num_pixels or config.n_positions
    if options.reference_pixels is not None and options.reference_pixels >= num_pixels:
        raise ValueError(
            f"reference_pixels is {options.reference_pixels}: it must be less than the {num_pixels} pixels of an image"
        )
    ours = [
        Implementation(
            library="imagegpt", precision=precision, decoder=cast(DecoderName, decoder), backend=options.backend
        )
        for precision in options.precisions
        for decoder in options.decoders
    ]
    runners = {implementation: implementation.load(options.model, options.device) for implementation in ours}
    not_compared = None
    if options.compare:
        try:
            runners |= _load_references(options)
        except NotComparableError as error:
            not_compared = str(error)
    return _Benchmark(options, config, runners, on_progress or (lambda *_: None)).run(not_compared)


def _load_references(options: BenchmarkOptions) -> dict[Implementation, Runner]:
    """transformers, with our weights."""
    supported = [name for name in dict.fromkeys(["float32", *options.precisions]) if name in DTYPES]
    precisions = options.reference_precisions or supported
    references = [Implementation(library="transformers", precision=precision) for precision in precisions]
    model = load_or_init_model(options.model, options.device)
    return {reference: reference.load(model, options.device) for reference in references}


class _Benchmark:
    def __init__(
        self,
        options: BenchmarkOptions,
        config: ImageGPTConfig,
        runners: Mapping[Implementation, Runner],
        on_progress: OnProgress,
    ) -> None:
        self.options, self.config, self.runners, self.on_progress = options, config, runners, on_progress
        self.num_pixels = options.num_pixels or config.n_positions
        self.statistics: dict[tuple[Implementation, int], Statistics] = {}
        num_trials = 0 if options.num_pixels else len(runners)
        num_timed = (options.repeats + 1) * (len(runners) + 1)  # one more for the read bandwidth
        num_subprocesses = len(runners) if options.memory else 0
        self.num_done, self.total = 0, (num_trials + num_timed + num_subprocesses) * len(options.batches)

    def run(self, not_compared: str | None) -> BenchmarkResult:
        estimated_full_s = None if self.options.num_pixels else self._limit_pixels()
        greedy_match, decoders_match = self._greedy_pixels_match(), self._decoders_match()
        bandwidth = timing.ReadBandwidth(self.options.device)
        times = {batch: self._time(batch, bandwidth) for batch in self.options.batches}
        bytes_per_s = bandwidth.bytes_per_s()
        measurements = [
            self._measurement(implementation, batch, batch_times, bytes_per_s["best"])
            for batch, batch_times in times.items()
            for implementation in self.runners
        ]
        return BenchmarkResult(
            num_pixels=self.num_pixels,
            image_pixels=self.config.n_positions,
            estimated_full_s=estimated_full_s,
            read_bytes_per_s=bytes_per_s,
            greedy_pixels_match=greedy_match,
            decoders_match=decoders_match,
            not_compared=not_compared,
            measurements=measurements,
        )

    def _report(self, activity: str, batch: int) -> None:
        self.on_progress(f"{activity}, {batch} image{'' if batch == 1 else 's'}", self.num_done, self.total)
        self.num_done += 1

    def _greedy_pixels_match(self) -> bool | None:
        runners = [runner for one, runner in self.runners.items() if one.precision == "float32"]
        if not any(isinstance(runner, TransformersRunner) for runner in runners):
            return None
        if not any(isinstance(runner, ImageGPTRunner) for runner in runners):
            ours = Implementation(library="imagegpt", precision="float32")
            runners.append(ours.load(self.options.model, self.options.device))
        return greedy_pixels_match(runners, min(2 * _NUM_TRIAL_PIXELS, self.config.n_positions))

    def _decoders_match(self) -> bool | None:
        ours = [run for one, run in self.runners.items() if (one.library, one.precision) == ("imagegpt", "float32")]
        if len(ours) < len(DECODERS):
            return None
        num_pixels = min(self.num_pixels, _NUM_COMPARED_PIXELS)
        first, second = (runner(self.options.batches[0], num_pixels) for runner in ours)
        return torch.equal(first, second)

    def _limit_pixels(self) -> float | None:
        """Sample a few pixels; if whole images would take too long, reduce `num_pixels` and return the estimate."""
        num_pixels, full_s = min(_NUM_TRIAL_PIXELS, self.config.n_positions), 0.0
        for batch in self.options.batches:
            for implementation, runner in self.runners.items():
                self._report(f"trying {implementation}", batch)
                runner(batch, num_pixels)
                trial_s = timing.time_call(lambda runner=runner, batch=batch: runner(batch, num_pixels))
                # Ours also samples whole images to warm up, and to measure memory.
                num_runs = self.options.repeats + (2 if implementation.library == "imagegpt" else 0)
                full_s += trial_s / num_pixels * self.config.n_positions * num_runs
        if full_s <= _MAX_TOTAL_S:
            return None
        affordable = int(self.config.n_positions * _MAX_TOTAL_S / full_s)
        self.num_pixels = max(num_pixels, 1 << max(affordable, 1).bit_length() - 1)
        return full_s

    def _time(self, batch: int, bandwidth: timing.ReadBandwidth) -> dict[str, list[float]]:
        runs: dict[str, Callable[[], Any]] = {"read bandwidth": bandwidth}
        warm_ups: dict[str, Callable[[], Any]] = {}
        num_pixels = min(_NUM_TRIAL_PIXELS, self.num_pixels)
        for implementation, runner in self.runners.items():
            runs[str(implementation)] = self._timed_run(implementation, runner, batch)
            if implementation.library == "transformers":  # slow, and with nothing to compile
                warm_ups[str(implementation)] = lambda runner=runner: runner(batch, num_pixels)
        return timing.measure(runs, self.options.repeats, lambda activity: self._report(activity, batch), warm_ups)

    def _timed_run(self, implementation: Implementation, runner: Runner, batch: int) -> Callable[[], timing.Seconds]:
        """A function that samples a batch, repeatedly if that is quick, and returns the seconds per batch."""
        if isinstance(runner, TransformersRunner) and self.options.reference_pixels is not None:
            span_length = self.options.reference_pixels
            return lambda: estimate_from_spans(runner, batch, self.num_pixels, span_length)
        self.statistics[implementation, batch] = Statistics()
        first_seeds = itertools.count(step=_SEEDS_PER_RUN)  # the same for all implementations in a round

        def run() -> timing.Seconds:
            first_seed, elapsed, num_batches = next(first_seeds), 0.0, 0
            while elapsed < _MIN_RUN_S or not num_batches:
                seed = first_seed + num_batches * batch
                elapsed += timing.time_call(lambda seed=seed: runner(batch, self.num_pixels, first_seed=seed))
                num_batches += 1
                if isinstance(runner, ImageGPTRunner) and first_seed:  # 0 is the warm-up
                    self.statistics[implementation, batch] += runner.statistics
            return timing.Seconds(elapsed / num_batches)

        return run

    def _measurement(
        self, implementation: Implementation, batch: int, times: Mapping[str, list[float]], bytes_per_s: float
    ) -> Measurement:
        name, runner = str(implementation), self.runners[implementation]
        peak_bytes = None
        if self.options.memory:
            self._report(f"memory of {name}", batch)
            peak_bytes = peak_bytes_in_subprocess(
                implementation, self.options.model, self.options.device, batch, self.num_pixels
            )
        step_s = statistics.median(times[name]) / self.num_pixels
        step_bytes = statistics.fmean(runner.step_bytes(batch, pixel) for pixel in (0, self.num_pixels - 1))
        references = [other for other in times if other.startswith("transformers")]
        fastest = min(references, key=lambda other: statistics.median(times[other]), default=None)
        is_ours = implementation.library == "imagegpt"
        is_parallel, sequential = implementation.decoder == "parallel", name.removesuffix(" parallel")
        has_sequential = is_parallel and sequential in times
        decoding = self.statistics.get((implementation, batch)) if is_parallel else None
        return Measurement(
            library=implementation.library,
            precision=implementation.precision,
            decoder=implementation.decoder,
            batch=batch,
            seconds=times[name],
            ms_per_pixel=1e3 * step_s,
            images_per_s=batch / (step_s * self.config.n_positions),
            roofline_ms=1e3 * step_bytes / bytes_per_s,
            bandwidth_fraction=step_bytes / bytes_per_s / step_s,
            peak_bytes=peak_bytes,
            weight_and_cache_bytes=runner.weight_bytes + runner.cache_bytes(batch, self.num_pixels),
            speedup=timing.speedup(times, fastest, name) if is_ours and fastest is not None else None,
            speedup_over_sequential=timing.speedup(times, sequential, name) if has_sequential else None,
            pixels_per_pass=None if decoding is None else decoding.pixels_per_pass,
            passes_by_length=None if decoding is None else dict(sorted(decoding.passes_by_length.items())),
        )


def estimate_from_spans(runner: TransformersRunner, batch: int, num_pixels: int, span_length: int) -> timing.Seconds:
    """Estimate the time to sample images, see `BenchmarkOptions.reference_pixels`."""
    last_start = num_pixels - span_length - 1
    starts = [round(last_start * index / (_NUM_SPANS - 1)) for index in range(_NUM_SPANS)]
    step_s = [runner.step_s(batch, start, span_length) for start in starts]
    centres = [start + (span_length + 1) / 2 for start in starts]
    return timing.Seconds(np.interp(np.arange(num_pixels), centres, step_s).sum())
