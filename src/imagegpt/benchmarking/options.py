"""The options of a benchmark."""

from collections.abc import Sequence
from dataclasses import dataclass

from imagegpt.benchmarking.implementations import DTYPES
from imagegpt.common import ranges
from imagegpt.sampling import BackendOption

PRECISIONS = ("float32", "bfloat16", "int8")
DECODERS = ("sequential", "parallel")


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """What to measure.

    Attributes:
        model: a bundled name, a folder, a name on the hub, or a named size with random weights (seed 0).
        batches: batch sizes, images.
        precisions: some of `PRECISIONS`.
        decoders: some of `DECODERS`; each precision is measured with each of them.
        num_pixels: per image; None is all, or a power of two of them if that would take over two minutes.
        repeats: timed rounds.
        device: for example "cpu" or "cuda".
        compare: measure transformers' ImageGPT as well.
        reference_precisions: of transformers; None is float32, and those of `precisions` that it supports.
        reference_pixels: None times transformers over all pixels. Otherwise it is timed over five spans of this many
            pixels, evenly spaced over the image, after filling its cache with constants; the time of the other pixels
            is interpolated between the centres of the spans.
        memory: measure memory, in subprocesses.

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
            "batches": [ranges.BATCH_SIZE.check("one of batches", batch) for batch in self.batches],
            "repeats": ranges.REPEATS.check("repeats", self.repeats),
            "num_pixels": ranges.PIXELS.check_optional("num_pixels", self.num_pixels),
            "reference_pixels": ranges.PIXELS.check_optional("reference_pixels", self.reference_pixels),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        _check_unique("batches", self.batches)
        _check_choices("precisions", self.precisions, PRECISIONS)
        _check_choices("decoders", self.decoders, DECODERS)
        if self.reference_precisions is not None:
            _check_choices("reference_precisions", self.reference_precisions, tuple(DTYPES))


def _check_choices(name: str, values: Sequence[str], choices: Sequence[str]) -> None:
    _check_unique(name, values)
    for value in values:
        if value not in choices:
            raise ValueError(f"{name} contains {value!r}: choose from {', '.join(choices)}")


def _check_unique(name: str, values: Sequence[object]) -> None:
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{name} is {list(values)}: give at least one value, without repetitions")
