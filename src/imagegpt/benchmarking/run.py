"""One benchmark of drawing, from a model's name to numbers; the head of the package says what is measured how."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from imagegpt.benchmarking import timing
from imagegpt.benchmarking.contestants import (
    DTYPES,
    Contestant,
    Draw,
    NotComparableError,
    config_of,
    model_of,
    same_greedy_pixels,
)
from imagegpt.benchmarking.memory import bytes_in_a_process
from imagegpt.config import ImageGPTConfig
from imagegpt.model import cost

PRECISIONS = ("float32", "bfloat16", "int8")

# What is being done, how many runs are behind, how many there will be.
Report = Callable[[str, int, int], None]

_WEIGHT_SIZES = {"float32": 4, "bfloat16": 2, "int8": 1}
_CACHE_SIZES = {"float32": 4, "bfloat16": 2, "int8": 2}
_NUM_TRIED_PIXELS = 8
_BUDGET_S = 120.0


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What to measure.

    Attributes:
        model: a bundled name, a folder, a name on the hub, or a named size, whose weights are random (seed 0).
        batches: images drawn at once.
        precisions: of `PRECISIONS`.
        num_pixels: drawn of each image; None is all, or a power of two of them when that would take over two minutes.
        repeats: timed rounds.
        device: where.
        compare: measure transformers' ImageGPT too, in float32 and in what else of `precisions` it knows.

    Raises: ValueError, naming the field, for values outside these ranges.
    """

    model: str
    batches: Sequence[int] = (1,)
    precisions: Sequence[str] = ("float32",)
    num_pixels: int | None = None
    repeats: int = 3
    device: str = "cpu"
    compare: bool = True

    def __post_init__(self) -> None:
        counts = [("batches", one) for one in self.batches] + [("repeats", self.repeats)]
        for name, count in counts if self.num_pixels is None else [*counts, ("num_pixels", self.num_pixels)]:
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise ValueError(f"{name} has {count!r}: it must be a whole number of at least 1")
        for name, values in (("batches", self.batches), ("precisions", self.precisions)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} is {list(values)}: give at least one, and each once")
        for precision in self.precisions:
            if precision not in PRECISIONS:
                raise ValueError(f"precisions has {precision!r}: choose from {', '.join(PRECISIONS)}")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One contestant at one batch size.

    Attributes:
        who: "imagegpt" (our sampler) or "transformers" (its ImageGPT's `generate`).
        precision: of the weights.
        batch: images drawn at once.
        seconds: of each round.
        ms_per_pixel: median time of a step, which draws one pixel of each image.
        images_per_s: whole images at that pace.
        floor_ms: the least time a step could take, on average over the pixels drawn, if nothing but memory counted.
        share: of the read bandwidth that was used, `floor_ms / ms_per_pixel`.
        peak_bytes: of memory while drawing; None where the system does not tell.
        speedup: over the fastest of transformers at this batch size: median, min and max over the rounds.
    """

    who: Literal["imagegpt", "transformers"]
    precision: str
    batch: int
    seconds: list[float]
    ms_per_pixel: float
    images_per_s: float
    floor_ms: float
    share: float
    peak_bytes: int | None
    speedup: dict[str, float] | None


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """What was measured.

    Attributes:
        num_pixels: drawn of each image.
        image_pixels: that an image has.
        whole_s: about how long whole images would have taken, if fewer pixels were chosen for that reason.
        read_bytes_per_s: of memory, "best" (the yardstick) and "median".
        same_greedy_pixels: whether both libraries made the same likeliest pixels in float32; None if not compared.
        not_compared: why transformers is missing.
        measurements: in the order measured.
    """

    num_pixels: int
    image_pixels: int
    whole_s: float | None
    read_bytes_per_s: dict[str, float]
    same_greedy_pixels: bool | None
    not_compared: str | None
    measurements: list[Measurement]


def run_benchmark(options: BenchOptions, report: Report | None = None) -> BenchResult:
    """Measure drawing.

    Args:
        options: what to measure.
        report: told what is being done, and how many runs of how many are behind.
    Raises: ValueError or OSError, in one sentence, if there is no such model, it cannot draw, or the sampler does not
        offer the precision; MemoryError.
    """
    config = config_of(options.model)
    if options.num_pixels is not None and options.num_pixels > config.n_positions:
        raise ValueError(f"num_pixels is {options.num_pixels}: this model's images have {config.n_positions} pixels")
    model = model_of(options.model, torch.float32, options.device)
    contestants = [Contestant(who="imagegpt", precision=precision) for precision in options.precisions]
    draws = {contestant: contestant.make(model, options.device) for contestant in contestants}
    same, not_compared = None, None
    if options.compare:
        try:
            same = _add_reference(draws, model, options)
        except NotComparableError as error:
            not_compared = str(error)
    return _Run(options, config, draws, report or (lambda *_: None)).measure_all(same, not_compared)


def _add_reference(draws: dict[Contestant, Draw], model: Any, options: BenchOptions) -> bool:
    """Let transformers take part, with our weights; whether it draws the same likeliest pixels."""
    for precision in dict.fromkeys(["float32", *options.precisions]):
        if precision in DTYPES:
            contestant = Contestant(who="transformers", precision=precision)
            draws[contestant] = contestant.make(model, options.device)
    few = min(2 * _NUM_TRIED_PIXELS, model.config.n_positions)
    return same_greedy_pixels(model, draws[Contestant(who="transformers", precision="float32")], few)


class _Run:
    """The measuring itself, and the counting of runs for `report`."""

    def __init__(
        self, options: BenchOptions, config: ImageGPTConfig, draws: Mapping[Contestant, Draw], report: Report
    ) -> None:
        self.options, self.config, self.draws, self.report = options, config, draws, report
        self.num_pixels = options.num_pixels or config.n_positions
        num_tries = 0 if options.num_pixels else len(draws)
        num_timed = (options.repeats + 1) * (len(draws) + 1)  # the reading of memory among them
        self.done, self.total = 0, (num_tries + num_timed + len(draws)) * len(options.batches)

    def measure_all(self, same: bool | None, not_compared: str | None) -> BenchResult:
        whole_s = None if self.options.num_pixels else self._choose_pixels()
        reader = timing.MemoryReader(self.options.device)
        times = {batch: self._time(batch, reader) for batch in self.options.batches}
        rates = reader.bytes_per_s()
        measurements = [
            self._measurement(contestant, batch, of_batch, rates["best"])
            for batch, of_batch in times.items()
            for contestant in self.draws
        ]
        return BenchResult(
            num_pixels=self.num_pixels,
            image_pixels=self.config.n_positions,
            whole_s=whole_s,
            read_bytes_per_s=rates,
            same_greedy_pixels=same,
            not_compared=not_compared,
            measurements=measurements,
        )

    def _start(self, what: str, batch: int) -> None:
        self.report(f"{what}, {batch} image{'' if batch == 1 else 's'}", self.done, self.total)
        self.done += 1

    def _choose_pixels(self) -> float | None:
        """Try a few pixels; if whole images would take too long, settle for fewer and tell how long."""
        few, a_pixel_s = min(_NUM_TRIED_PIXELS, self.config.n_positions), 0.0
        for batch in self.options.batches:
            for contestant, draw in self.draws.items():
                self._start(f"trying {contestant}", batch)
                draw(batch, few)
                a_pixel_s += timing.seconds_of(lambda draw=draw, batch=batch: draw(batch, few)) / few
        whole_s = a_pixel_s * self.config.n_positions * (self.options.repeats + 2)  # to warm up; for memory
        if whole_s <= _BUDGET_S:
            return None
        affordable = int(self.config.n_positions * _BUDGET_S / whole_s)
        self.num_pixels = max(few, 1 << max(affordable, 1).bit_length() - 1)
        return whole_s

    def _time(self, batch: int, reader: timing.MemoryReader) -> dict[str, list[float]]:
        runs: dict[str, Callable[[], Any]] = {"reading memory": reader}
        for contestant, draw in self.draws.items():
            runs[str(contestant)] = lambda draw=draw: draw(batch, self.num_pixels)
        return timing.measure(runs, self.options.repeats, lambda what: self._start(what, batch))

    def _measurement(
        self, contestant: Contestant, batch: int, times: Mapping[str, list[float]], read_rate: float
    ) -> Measurement:
        self._start(f"memory of {contestant}", batch)
        name, who, precision = str(contestant), contestant.who, contestant.precision
        peak = bytes_in_a_process(contestant, self.options.model, self.options.device, batch, self.num_pixels)
        step_s = statistics.median(times[name]) / self.num_pixels
        floor_s = self._mean_step_bytes(precision, batch) / read_rate
        theirs = [other for other in times if other.startswith("transformers")]
        best = min(theirs, key=lambda other: statistics.median(times[other]), default=None)
        return Measurement(
            who=who,
            precision=precision,
            batch=batch,
            seconds=times[name],
            ms_per_pixel=1e3 * step_s,
            images_per_s=batch / (step_s * self.config.n_positions),
            floor_ms=1e3 * floor_s,
            share=floor_s / step_s,
            peak_bytes=peak,
            speedup=timing.ratio(times, best, name) if best is not None and who == "imagegpt" else None,
        )

    def _mean_step_bytes(self, precision: str, batch: int) -> float:
        weight_size, cache_size = _WEIGHT_SIZES[precision], _CACHE_SIZES[precision]
        return statistics.fmean(
            cost.step_bytes(self.config, pixel, batch=batch, weight_size=weight_size, cache_size=cache_size)
            for pixel in range(self.num_pixels)
        )
