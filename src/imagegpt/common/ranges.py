"""The valid range of every number a user can give. All of them are defined here and nowhere else.

The command line, recipes and Python functions check their arguments with the same objects: `SEED.check("seed", value)`
returns a plain int or raises ValueError with a message for the user. Any integral type is accepted as an integer
(NumPy's included) and any real type as a float; booleans, NaN and infinities are always rejected.

These are the values that make sense at all. Whether a particular model or machine has room for them is checked where
that is known, see `imagegpt.common.memory`.
"""

import math
import numbers
import operator
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Number = TypeVar("Number", int, float)


class Range(ABC, Generic[Number]):
    """Base class of `IntRange` and `FloatRange`; `str(range)` describes it for error messages."""

    kind: type[Number]
    min: Number
    max: Number

    def check(self, name: str, value: Any) -> Number:
        """Return the value as a plain int or float.

        Raises: ValueError unless the value is a number of this kind and within the range.
        """
        number = self._convert(value)
        if number is None:
            raise ValueError(f"{name} is {_shown(value)}: it must be {self}")
        return number

    def check_optional(self, name: str, value: Any) -> Number | None:
        """Like `check`, but return None for None."""
        return None if value is None else self.check(name, value)

    def parse(self, text: str) -> Number:
        """Convert text to a number.

        Raises: ValueError unless the text is a number within the range.
        """
        try:
            return self.check(text, self.kind(text))
        except ValueError:
            raise ValueError(f"{text} is not {self}") from None

    def __contains__(self, value: Any) -> bool:
        return self._convert(value) is not None

    @property
    def bounds(self) -> str:
        """The range in short form, for `--help`: "1..100"."""
        return f"{_digits(self.min)}..{_digits(self.max)}"

    @abstractmethod
    def _convert(self, value: Any) -> Number | None:
        """Return the value as a plain number, or None if it is not a number within the range."""


@dataclass(frozen=True, kw_only=True)
class IntRange(Range[int]):
    """Integers from `min` to `max`, both inclusive.

    Args:
        unit: what is counted, for messages; "" for plain numbers.
    """

    kind = int
    min: int
    max: int
    unit: str = ""

    def __str__(self) -> str:
        return f"an integer from {_digits(self.min)} to {_digits(self.max)}{_in(self.unit)}"

    def _convert(self, value: Any) -> int | None:
        if _is_boolean(value):
            return None
        try:
            number = operator.index(value)
        except TypeError:
            return None
        return number if self.min <= number <= self.max else None


@dataclass(frozen=True, kw_only=True)
class FloatRange(Range[float]):
    """Real numbers from `min` to `max`, both inclusive unless marked as open.

    Args:
        unit: of the value, for messages; "" for plain numbers.
    """

    kind = float
    min: float
    max: float
    min_open: bool = False
    max_open: bool = False
    unit: str = ""

    def __str__(self) -> str:
        start, end = _digits(self.min), _digits(self.max)
        if not (self.min_open or self.max_open):
            return f"a number from {start} to {end}{_in(self.unit)}"
        above, below = "greater than" if self.min_open else "of at least", "less than" if self.max_open else "at most"
        return f"a number {above} {start} and {below} {end}{_in(self.unit)}"

    def _convert(self, value: Any) -> float | None:
        if _is_boolean(value) or not isinstance(value, numbers.Real):
            return None
        try:
            number = float(value)
        except OverflowError:
            return None
        is_low = number <= self.min if self.min_open else number < self.min
        is_high = number >= self.max if self.max_open else number > self.max
        return None if math.isnan(number) or is_low or is_high else number


def to_python(value: Any) -> Any:
    """Convert numbers of NumPy and other libraries to Python's; return anything else unchanged."""
    if isinstance(value, bool | int | float) or not isinstance(value, numbers.Real):
        return value
    return operator.index(value) if isinstance(value, numbers.Integral) else float(value)


def _is_boolean(value: Any) -> bool:
    """Whether a value is a boolean, which Python, NumPy and torch would accept as 0 or 1."""
    return isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))


def _in(unit: str) -> str:
    return f" ({unit})" if unit else ""


def _shown(value: Any) -> str:
    """Format a value for an error message: NumPy scalars like Python's, long values cut off."""
    is_scalar = hasattr(value, "dtype") and hasattr(value, "item") and getattr(value, "ndim", 1) == 0
    try:
        text = repr(value.item() if is_scalar else value)
    except ValueError:  # Python refuses to print integers with thousands of digits
        return "far too large"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _digits(number: float) -> str:
    """Format a bound: with thousands separators, or as a power of two."""
    if isinstance(number, int) and number > 1 << 31 and (number + 1) & number == 0:
        return f"2^{number.bit_length()} - 1"
    return f"{number:,}" if isinstance(number, int) else f"{number:,g}"


# Images and pixels. A side of 1,024 gives the longest sequence: attention memory grows quadratically with it, and the
# paper's largest images are 64 x 64. File names have room for 10^8 images.
NUM_IMAGES = IntRange(min=1, max=10**8, unit="images")
DATASET_SIZE = IntRange(min=1, max=10**9, unit="images")  # in a data set
BATCH_SIZE = IntRange(min=1, max=1 << 16, unit="images")
IMAGE_SIDE = IntRange(min=1, max=1 << 10, unit="pixels")
PIXELS = IntRange(min=1, max=1 << 20, unit="pixels")
ROWS = IntRange(min=0, max=(1 << 10) - 1, unit="rows")
KEEP = FloatRange(min=0, max=1, max_open=True)  # fraction of the pixels
RESCALE_FACTOR = FloatRange(min=0, max=1000, min_open=True)
PIXEL_MEAN = FloatRange(min=-1000, max=1000)
PIXEL_STD = FloatRange(min=0, max=1000, min_open=True)
SHEET_SAMPLES = IntRange(min=0, max=1024, unit="images")

# Colours: an id has 16 bits.
COLORS = IntRange(min=2, max=1 << 16, unit="colours")
GREY_LEVELS = IntRange(min=2, max=256, unit="grey levels")
PALETTE_PIXELS = IntRange(min=2, max=1 << 26, unit="pixels")  # that k-means fits on: 50 bytes each

# Seeds: limited by the noise of sampling, by torch, and by scikit-learn.
SEED = IntRange(min=0, max=(1 << 64) - 1)
TRAINING_SEED = IntRange(min=0, max=(1 << 63) - 1)
FITTING_SEED = IntRange(min=0, max=(1 << 32) - 1)
INDEX = IntRange(min=0, max=(1 << 64) - 1)

# Sampling rules. Above a temperature of 1,000 all colours are equally likely; float32 overflows far later.
TEMPERATURE = FloatRange(min=0, max=1000)
TOP_K = IntRange(min=1, max=1 << 16, unit="colours")
TOP_P = FloatRange(min=0, max=1, min_open=True)
MIN_P = FloatRange(min=0, max=1)
PASSES = IntRange(min=1, max=10_000, unit="passes")
REFILLS = IntRange(min=0, max=10_000, unit="passes")
REFILL_FRACTION = FloatRange(min=0, max=1, min_open=True)

# Machines.
MEMORY_BYTES = IntRange(min=1, max=10**15, unit="bytes")
MEMORY_GB = FloatRange(min=0, max=10**6, min_open=True, unit="GB")
WORKERS = IntRange(min=1, max=1024, unit="processes")
DATA_WORKERS = IntRange(min=0, max=1024, unit="processes")
WORLD_SIZE = IntRange(min=1, max=1 << 16, unit="processes")
RANK = IntRange(min=0, max=(1 << 16) - 1)
REPEATS = IntRange(min=1, max=10_000, unit="rounds")

# Files.
SHARD_FILES = IntRange(min=1, max=99_999, unit="files")  # limited by the file names of a tensor bundle
SHARD_IMAGES = IntRange(min=1, max=1 << 20, unit="images")
BROKEN_FRACTION = FloatRange(min=0, max=1)
OPENAI_STEP = IntRange(min=131_000, max=1_000_000, unit="updates")

# Architecture.
LAYERS = IntRange(min=1, max=1024, unit="blocks")
WIDTH = IntRange(min=1, max=1 << 16)
INNER_WIDTH = IntRange(min=1, max=1 << 20)
HEADS = IntRange(min=1, max=1024, unit="heads")
VOCABULARY = IntRange(min=3, max=(1 << 16) + 1, unit="tokens")  # at least two colours and the start token
CLASSES = IntRange(min=1, max=1 << 16, unit="classes")
TOKEN = IntRange(min=0, max=(1 << 31) - 1)
LORA_RANK = IntRange(min=1, max=1 << 12)
LORA_RANK_OR_NONE = IntRange(min=0, max=1 << 12)
DROPOUT = FloatRange(min=0, max=1, max_open=True)
NORM_EPSILON = FloatRange(min=0, max=1, min_open=True)
WEIGHT_SCALE = FloatRange(min=0, max=1000, min_open=True)

# Training.
STEPS = IntRange(min=1, max=10**9, unit="steps")
WARMUP_STEPS = IntRange(min=0, max=10**9, unit="steps")
LEARNING_RATE = FloatRange(min=0, max=1e30, min_open=True)  # a diverging run is detected in training
EMA_DECAY = FloatRange(min=0, max=1, max_open=True)  # of the exponential moving average of the weights
WEIGHT_DECAY = FloatRange(min=0, max=1000)
GRADIENT_NORM = FloatRange(min=0, max=1e30, min_open=True)
LOSS_WEIGHT = FloatRange(min=0, max=10**6)
NATS = FloatRange(min=0, max=10**6, min_open=True, unit="nats")
OPEN_FRACTION = FloatRange(min=0, max=1, min_open=True, max_open=True)  # excludes 0 and 1
FRACTION = FloatRange(min=0, max=1, max_open=True)  # excludes 1 only
PROBABILITY = FloatRange(min=0, max=1, min_open=True, max_open=True)
VALIDATIONS = IntRange(min=1, max=10**9, unit="validations")
CHECKPOINTS = IntRange(min=2, max=10**6, unit="checkpoints")
ROLLBACKS = IntRange(min=0, max=10**6, unit="times")
