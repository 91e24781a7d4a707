"""One benchmark of drawing, from a model's name to numbers; the head of the package says what is measured how."""

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch

from imagegpt.benchmarking import timing
from imagegpt.benchmarking.implementations import (
    DTYPES,
    Contestant,
    Draw,
    NotComparableError,
    OurDraw,
    TheirDraw,
    config_of,
    model_of,
    same_greedy_pixels,
)
from imagegpt.benchmarking.memory import bytes_in_a_process
from imagegpt.common import ranges
from imagegpt.config import ImageGPTConfig
from imagegpt.sampling import DecoderName
from imagegpt.sampling.plan import BackendOption
from imagegpt.sampling.session import Statistics

PRECISIONS = ("float32", "bfloat16", "int8")
DECODERS = ("sequential", "parallel")

# What is being done, how many runs are behind, how many there will be.
Report = Callable[[str, int, int], None]

_NUM_TRIED_PIXELS = 8
_NUM_COMPARED_PIXELS = 64
_NUM_STRETCHES = 5
_SEEDS_A_RUN = 1 << 20
_BUDGET_S = 120.0
_LEAST_S = 0.5  # that a timed run lasts: small images are drawn again and again, each with other seeds


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What to measure.

    Attributes:
        model: a bundled name, a folder, a name on the hub, or a named size, whose weights are random (seed 0).
        batches: images drawn at once.
        precisions: of `PRECISIONS`.
        decoders: of `DECODERS`; each precision is measured with each of them.
        backend: of our sampler.
        num_pixels: drawn of each image; None is all, or a power of two of them when that would take over two minutes.
        repeats: timed rounds.
        device: where.
        compare: measure transformers' ImageGPT too.
        reference_precisions: of transformers; None is float32 and what else of `precisions` it knows.
        reference_pixels: None times transformers over all pixels. Otherwise it is timed over five stretches of so many
            pixels, evenly spread from the first to the last, with keys and values of the pixels before put where they
            would be; the time of a step is interpolated between the middles of the stretches and summed.
        memory: whether to measure memory, in processes of their own.

    Raises: ValueError, naming the field, for values outside these ranges.
    """

    model: str
    batches: Sequence[int] = (1,)
    precisions: Sequence[str] = ("float32",)
    decoders: Sequence[str] = ("sequential",)
    backend: BackendOption = "auto"
    num_pixels: int | None = None
    repeats: int = 3
    device: str = "cpu"
    compare: bool = True
    reference_precisions: Sequence[str] | None = None
    reference_pixels: int | None = None
    memory: bool = True

    def __post_init__(self) -> None:
        checked = {
            "batches": [ranges.BATCH.check("one of batches", one) for one in self.batches],
            "repeats": ranges.REPEATS.check("repeats", self.repeats),
            "num_pixels": ranges.PIXELS.check_if_given("num_pixels", self.num_pixels),
            "reference_pixels": ranges.PIXELS.check_if_given("reference_pixels", self.reference_pixels),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        _check_choices("precisions", self.precisions, PRECISIONS)
        _check_choices("decoders", self.decoders, DECODERS)
        if self.reference_precisions is not None:
            _check_choices("reference_precisions", self.reference_precisions, tuple(DTYPES))
        if len(set(self.batches)) < max(1, len(self.batches)):
            raise ValueError(f"batches is {list(self.batches)}: give at least one, and each once")


def _check_choices(name: str, values: Sequence[str], known: Sequence[str]) -> None:
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{name} is {list(values)}: give at least one, and each once")
    for value in values:
        if value not in known:
            raise ValueError(f"{name} has {value!r}: choose from {', '.join(known)}")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One contestant at one batch size.

    Attributes:
        who: "imagegpt" (our sampler) or "transformers" (its ImageGPT's `generate`).
        precision: of the weights.
        decoder: of our sampler.
        batch: images drawn at once.
        seconds: to draw such a batch, in each round.
        ms_per_pixel: median time of a step, which draws one pixel of each image.
        images_per_s: whole images at that pace.
        floor_ms: the least time a step could take, on average over the pixels drawn, if nothing but memory counted.
        share: of the read bandwidth that was used, `floor_ms / ms_per_pixel`.
        peak_bytes: of memory while drawing; None where the system does not tell, or it was not asked.
        held_bytes: what must be held of it: weights, and keys and values for the images.
        speedup: over the fastest of transformers at this batch size: median, min and max over the rounds.
        over_sequential: of the parallel decoder, how many times faster than the sequential one; likewise.
        pixels_per_pass: of the parallel decoder, accepted of an image in a pass, on average.
        run_lengths: likewise, how many passes fed how many positions.
    """

    who: Literal["imagegpt", "transformers"]
    precision: str
    decoder: str
    batch: int
    seconds: list[float]
    ms_per_pixel: float
    images_per_s: float
    floor_ms: float
    share: float
    peak_bytes: int | None
    held_bytes: int
    speedup: dict[str, float] | None
    over_sequential: dict[str, float] | None
    pixels_per_pass: float | None
    run_lengths: dict[int, int] | None


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """What was measured.

    Attributes:
        num_pixels: drawn of each image.
        image_pixels: that an image has.
        whole_s: about how long whole images would have taken, if fewer pixels were chosen for that reason.
        read_bytes_per_s: of memory, "best" (the yardstick) and "median".
        same_greedy_pixels: whether both libraries made the same likeliest pixels in float32; None if not compared.
        same_parallel_images: whether both decoders drew the same pixels in float32; None if not both took part.
        not_compared: why transformers is missing.
        measurements: in the order measured.
    """

    num_pixels: int
    image_pixels: int
    whole_s: float | None
    read_bytes_per_s: dict[str, float]
    same_greedy_pixels: bool | None
    same_parallel_images: bool | None
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
    if options.reference_pixels is not None and options.reference_pixels >= (options.num_pixels or config.n_positions):
        raise ValueError(f"reference_pixels is {options.reference_pixels}: five such stretches are no part of an image")
    draws = {one: one.make(options.model, options.device) for one in _our_contestants(options)}
    not_compared = None
    if options.compare:
        try:
            draws |= _references(options)
        except NotComparableError as error:
            not_compared = str(error)
    return _Run(options, config, draws, report or (lambda *_: None)).measure_all(not_compared)


def _our_contestants(options: BenchOptions) -> list[Contestant]:
    return [
        Contestant(who="imagegpt", precision=precision, decoder=cast(DecoderName, decoder), backend=options.backend)
        for precision in options.precisions
        for decoder in options.decoders
    ]


def _references(options: BenchOptions) -> dict[Contestant, Draw]:
    """transformers, with our weights."""
    known = [one for one in dict.fromkeys(["float32", *options.precisions]) if one in DTYPES]
    contestants = [Contestant(who="transformers", precision=one) for one in options.reference_precisions or known]
    model = model_of(options.model, torch.float32, options.device)
    return {one: one.make(model, options.device) for one in contestants}


class _Run:
    """The measuring itself, and the counting of runs for `report`."""

    def __init__(
        self, options: BenchOptions, config: ImageGPTConfig, draws: Mapping[Contestant, Draw], report: Report
    ) -> None:
        self.options, self.config, self.draws, self.report = options, config, draws, report
        self.num_pixels = options.num_pixels or config.n_positions
        self.statistics: dict[tuple[Contestant, int], Statistics] = {}
        num_tries = 0 if options.num_pixels else len(draws)
        num_timed = (options.repeats + 1) * (len(draws) + 1)  # the reading of memory among them
        num_processes = len(draws) if options.memory else 0
        self.done, self.total = 0, (num_tries + num_timed + num_processes) * len(options.batches)

    def measure_all(self, not_compared: str | None) -> BenchResult:
        whole_s = None if self.options.num_pixels else self._choose_pixels()
        same_greedy, same_parallel = self._same_greedy_pixels(), self._same_parallel_images()
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
            same_greedy_pixels=same_greedy,
            same_parallel_images=same_parallel,
            not_compared=not_compared,
            measurements=measurements,
        )

    def _start(self, what: str, batch: int) -> None:
        self.report(f"{what}, {batch} image{'' if batch == 1 else 's'}", self.done, self.total)
        self.done += 1

    def _same_greedy_pixels(self) -> bool | None:
        """Whether both libraries draw the same likeliest pixels in float32; ours as it is measured, if it is."""
        drawn = [self.draws[one] for one in self.draws if one.precision == "float32"]
        if not any(isinstance(draw, TheirDraw) for draw in drawn):
            return None
        if not any(isinstance(draw, OurDraw) for draw in drawn):
            plain = Contestant(who="imagegpt", precision="float32")
            drawn.append(plain.make(self.options.model, self.options.device))
        return same_greedy_pixels(drawn, min(2 * _NUM_TRIED_PIXELS, self.config.n_positions))

    def _same_parallel_images(self) -> bool | None:
        ours = [draw for one, draw in self.draws.items() if (one.who, one.precision) == ("imagegpt", "float32")]
        if len(ours) < len(DECODERS):
            return None
        num_pixels = min(self.num_pixels, _NUM_COMPARED_PIXELS)
        first, second = (draw(self.options.batches[0], num_pixels) for draw in ours)
        return torch.equal(first, second)

    def _choose_pixels(self) -> float | None:
        """Try a few pixels; if whole images would take too long, settle for fewer and tell how long."""
        few, whole_s = min(_NUM_TRIED_PIXELS, self.config.n_positions), 0.0
        for batch in self.options.batches:
            for contestant, draw in self.draws.items():
                self._start(f"trying {contestant}", batch)
                draw(batch, few)
                pixel_s = timing.seconds_of(lambda draw=draw, batch=batch: draw(batch, few)) / few
                # Ours draw whole images to warm up and for memory, too.
                num_runs = self.options.repeats + (2 if contestant.who == "imagegpt" else 0)
                whole_s += pixel_s * self.config.n_positions * num_runs
        if whole_s <= _BUDGET_S:
            return None
        affordable = int(self.config.n_positions * _BUDGET_S / whole_s)
        self.num_pixels = max(few, 1 << max(affordable, 1).bit_length() - 1)
        return whole_s

    def _time(self, batch: int, reader: timing.MemoryReader) -> dict[str, list[float]]:
        runs: dict[str, Callable[[], Any]] = {"reading memory": reader}
        warm_ups: dict[str, Callable[[], Any]] = {}
        few = min(_NUM_TRIED_PIXELS, self.num_pixels)
        for contestant, draw in self.draws.items():
            runs[str(contestant)] = self._run(contestant, draw, batch)
            if contestant.who == "transformers":  # which is slow, and has nothing to build
                warm_ups[str(contestant)] = lambda draw=draw: draw(batch, few)
        return timing.measure(runs, self.options.repeats, lambda what: self._start(what, batch), warm_ups)

    def _run(self, contestant: Contestant, draw: Draw, batch: int) -> Callable[[], timing.Seconds]:
        """What is timed: drawing a batch, or several in turn if that is quick."""
        if isinstance(draw, TheirDraw) and self.options.reference_pixels is not None:
            length = self.options.reference_pixels
            return lambda: by_stretches(draw, batch, self.num_pixels, length)
        self.statistics[contestant, batch] = Statistics()
        seeds = itertools.count(step=_SEEDS_A_RUN)  # the same for all contestants in a round

        def run() -> timing.Seconds:
            first_seed, elapsed, num_drawn = next(seeds), 0.0, 0
            while elapsed < _LEAST_S or not num_drawn:
                seed = first_seed + num_drawn * batch
                elapsed += timing.seconds_of(lambda seed=seed: draw(batch, self.num_pixels, first_seed=seed))
                num_drawn += 1
                if isinstance(draw, OurDraw) and first_seed:  # not while warming up
                    self.statistics[contestant, batch] += draw.statistics
            return timing.Seconds(elapsed / num_drawn)

        return run

    def _measurement(
        self, contestant: Contestant, batch: int, times: Mapping[str, list[float]], read_rate: float
    ) -> Measurement:
        name, who, precision = str(contestant), contestant.who, contestant.precision
        peak, draw = None, self.draws[contestant]
        if self.options.memory:
            self._start(f"memory of {contestant}", batch)
            peak = bytes_in_a_process(contestant, self.options.model, self.options.device, batch, self.num_pixels)
        step_s = statistics.median(times[name]) / self.num_pixels
        floor_s = statistics.fmean(draw.step_bytes(batch, pixel) for pixel in (0, self.num_pixels - 1)) / read_rate
        theirs = [other for other in times if other.startswith("transformers")]
        best = min(theirs, key=lambda other: statistics.median(times[other]), default=None)
        is_parallel, sequential = contestant.decoder == "parallel", name.removesuffix(" parallel")
        seen = self.statistics.get((contestant, batch)) if is_parallel else None
        return Measurement(
            who=who,
            precision=precision,
            decoder=contestant.decoder,
            batch=batch,
            seconds=times[name],
            ms_per_pixel=1e3 * step_s,
            images_per_s=batch / (step_s * self.config.n_positions),
            floor_ms=1e3 * floor_s,
            share=floor_s / step_s,
            peak_bytes=peak,
            held_bytes=draw.weight_bytes + draw.cache_bytes(batch, self.num_pixels),
            speedup=timing.ratio(times, best, name) if best is not None and who == "imagegpt" else None,
            over_sequential=timing.ratio(times, sequential, name) if is_parallel and sequential in times else None,
            pixels_per_pass=None if seen is None else seen.pixels_per_pass,
            run_lengths=None if seen is None else dict(sorted(seen.lengths.items())),
        )


def by_stretches(draw: TheirDraw, batch: int, num_pixels: int, length: int) -> timing.Seconds:
    """About how long drawing takes, see `BenchOptions.reference_pixels`."""
    last = num_pixels - length - 1
    starts = [round(last * index / (_NUM_STRETCHES - 1)) for index in range(_NUM_STRETCHES)]
    step_s = [draw.step_s(batch, start, length) for start in starts]
    middles = [start + (length + 1) / 2 for start in starts]
    return timing.Seconds(np.interp(np.arange(num_pixels), middles, step_s).sum())
