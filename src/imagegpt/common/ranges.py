"""The range of every number a user can give, declared here and nowhere else.

The command line, recipes and Python functions all check with the same objects: `SEED.check("seed", value)` gives the
number as a plain int, or raises the one sentence. Any integral number counts as whole (NumPy's too), any real one as
real; booleans, NaN and infinities are refused everywhere.

A range says what makes sense at all. What a certain model or machine has room for is checked where that is known, see
`imagegpt.common.memory`.
"""

import math
import numbers
import operator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Number = TypeVar("Number", int, float)


class Range(Generic[Number]):
    """What `Whole` and `Real` share: the check, and the sentence if it fails."""

    kind: type[Number]
    lowest: Number
    highest: Number

    def check(self, name: str, value: Any) -> Number:
        """The value as a plain number.

        Raises: ValueError, which calls it `name`, unless it is a number of the kind, within the range.
        """
        number = self._number(value)
        if number is None:
            raise ValueError(f"{name} is {_shown(value)}: it must be {self}")
        return number

    def check_if_given(self, name: str, value: Any) -> Number | None:
        """As `check`; None stays None."""
        return None if value is None else self.check(name, value)

    def parse(self, text: str) -> Number:
        """The number that a text spells.

        Raises: ValueError unless it spells one within the range.
        """
        try:
            return self.check(text, self.kind(text))
        except ValueError:
            raise ValueError(f"{text} is not {self}") from None

    def holds(self, value: Any) -> bool:
        """Whether a value is a number of the kind, within the range."""
        return self._number(value) is not None

    @property
    def bounds(self) -> str:
        """The range in short, for `--help`."""
        return f"{_digits(self.lowest)}..{_digits(self.highest)}"

    def _number(self, value: Any) -> Number | None:
        """The value as a plain number, None if it is outside."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Whole(Range[int]):
    """Whole numbers from `lowest` to `highest`, both included.

    Args:
        lowest: the lowest.
        highest: the highest.
        unit: what they count, for messages; "" for plain numbers.
    """

    kind = int
    lowest: int
    highest: int
    unit: str = ""

    def __str__(self) -> str:
        return f"a whole number from {_digits(self.lowest)} to {_digits(self.highest)}{_in(self.unit)}"

    def _number(self, value: Any) -> int | None:
        if _is_boolean(value):
            return None
        try:
            whole = operator.index(value)
        except TypeError:
            return None
        return whole if self.lowest <= whole <= self.highest else None


@dataclass(frozen=True, kw_only=True)
class Real(Range[float]):
    """Numbers from `lowest` to `highest`, both included unless the flags say otherwise.

    Args:
        lowest: the lowest.
        highest: the highest.
        above: `lowest` itself is outside.
        below: `highest` itself is outside.
        unit: what they measure, for messages; "" for plain numbers.
    """

    kind = float
    lowest: float
    highest: float
    above: bool = False
    below: bool = False
    unit: str = ""

    def __str__(self) -> str:
        start, end = _digits(self.lowest), _digits(self.highest)
        if not (self.above or self.below):
            return f"a number from {start} to {end}{_in(self.unit)}"
        above, below = "greater than" if self.above else "of at least", "less than" if self.below else "at most"
        return f"a number {above} {start} and {below} {end}{_in(self.unit)}"

    def _number(self, value: Any) -> float | None:
        if _is_boolean(value) or not isinstance(value, numbers.Real):
            return None
        try:
            number = float(value)
        except OverflowError:
            return None
        is_low = number <= self.lowest if self.above else number < self.lowest
        is_high = number >= self.highest if self.below else number > self.highest
        return None if math.isnan(number) or is_low or is_high else number


def plain(value: Any) -> Any:
    """NumPy's and other libraries' numbers as Python's; everything else as it is."""
    if isinstance(value, bool | int | float) or not isinstance(value, numbers.Real):
        return value
    return operator.index(value) if isinstance(value, numbers.Integral) else float(value)


def _is_boolean(value: Any) -> bool:
    """Python, NumPy and torch count True as 1."""
    return isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))


def _in(unit: str) -> str:
    return f" ({unit})" if unit else ""


def _shown(value: Any) -> str:
    """A value in a message: NumPy's numbers as Python's, and nothing longer than a line."""
    is_scalar = hasattr(value, "dtype") and hasattr(value, "item") and getattr(value, "ndim", 1) == 0
    try:
        text = repr(value.item() if is_scalar else value)
    except ValueError:  # Python does not write out whole numbers of thousands of digits
        return "far too large"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _digits(number: float) -> str:
    """A bound as people write it."""
    if isinstance(number, int) and number > 1 << 31 and (number + 1) & number == 0:
        return f"2^{number.bit_length()} - 1"
    return f"{number:,}" if isinstance(number, int) else f"{number:,g}"


# Images and pixels. A side of 1,024 gives the most pixels a sequence may have: memory for attention grows with their
# square, and the paper's largest images have 64 x 64. The names of files have room for 10^8 images.
NUM_IMAGES = Whole(lowest=1, highest=10**8, unit="images")
SOME_IMAGES = Whole(lowest=1, highest=10**9, unit="images")  # of a data set
BATCH = Whole(lowest=1, highest=1 << 16, unit="images")
SIDE = Whole(lowest=1, highest=1 << 10, unit="pixels")
PIXELS = Whole(lowest=1, highest=1 << 20, unit="pixels")
ROWS = Whole(lowest=0, highest=(1 << 10) - 1, unit="rows")
KEEP = Real(lowest=0, highest=1, below=True)  # share of the pixels
RESCALE_FACTOR = Real(lowest=0, highest=1000, above=True)
PIXEL_MEAN = Real(lowest=-1000, highest=1000)
PIXEL_STD = Real(lowest=0, highest=1000, above=True)
COLUMNS = Whole(lowest=1, highest=10**8, unit="columns")
SHEET_SAMPLES = Whole(lowest=0, highest=1024, unit="images")

# Colours: an id has 16 bits.
COLORS = Whole(lowest=2, highest=1 << 16, unit="colours")
GREY_LEVELS = Whole(lowest=2, highest=256, unit="grey levels")
FITTED_PIXELS = Whole(lowest=2, highest=1 << 26, unit="pixels")  # that k-means sees: 50 bytes for each

# Seeds: what the noise of sampling, torch, and scikit-learn take.
SEED = Whole(lowest=0, highest=(1 << 64) - 1)
TRAINING_SEED = Whole(lowest=0, highest=(1 << 63) - 1)
FITTING_SEED = Whole(lowest=0, highest=(1 << 32) - 1)
INDEX = Whole(lowest=0, highest=(1 << 64) - 1)

# Sampling rules. From a temperature of 1,000 on all colours are equally likely, and float32 overflows long after that.
TEMPERATURE = Real(lowest=0, highest=1000)
TOP_K = Whole(lowest=1, highest=1 << 16, unit="colours")
TOP_P = Real(lowest=0, highest=1, above=True)
MIN_P = Real(lowest=0, highest=1)
PASSES = Whole(lowest=1, highest=10_000, unit="passes")
REFILLS = Whole(lowest=0, highest=10_000, unit="passes")
REFILL_SHARE = Real(lowest=0, highest=1, above=True)

# Machines.
MEMORY_BYTES = Whole(lowest=1, highest=10**15, unit="bytes")
MEMORY_GB = Real(lowest=0, highest=10**6, above=True, unit="GB")
WORKERS = Whole(lowest=1, highest=1024, unit="processes")
DATA_WORKERS = Whole(lowest=0, highest=1024, unit="processes")
WORLD_SIZE = Whole(lowest=1, highest=1 << 16, unit="processes")
RANK = Whole(lowest=0, highest=(1 << 16) - 1)
WAIT_S = Real(lowest=0, highest=10**7, above=True, unit="seconds")
REPEATS = Whole(lowest=1, highest=10_000, unit="rounds")

# Files.
SHARD_FILES = Whole(lowest=1, highest=99_999, unit="files")  # what the names of a tensor bundle have room for
SHARD_IMAGES = Whole(lowest=1, highest=1 << 20, unit="images")
BROKEN_SHARE = Real(lowest=0, highest=1)
OPENAI_STEP = Whole(lowest=131_000, highest=1_000_000, unit="updates")

# Architecture.
LAYERS = Whole(lowest=1, highest=1024, unit="blocks")
WIDTH = Whole(lowest=1, highest=1 << 16)
INNER_WIDTH = Whole(lowest=1, highest=1 << 20)
HEADS = Whole(lowest=1, highest=1024, unit="heads")
VOCABULARY = Whole(lowest=3, highest=(1 << 16) + 1, unit="tokens")  # two colours and the start token
CLASSES = Whole(lowest=1, highest=1 << 16, unit="classes")
TOKEN = Whole(lowest=0, highest=(1 << 31) - 1)
LORA_RANK = Whole(lowest=1, highest=1 << 12)
LORA_RANK_OR_NONE = Whole(lowest=0, highest=1 << 12)
DROPOUT = Real(lowest=0, highest=1, below=True)
NORM_EPSILON = Real(lowest=0, highest=1, above=True)
WEIGHT_SCALE = Real(lowest=0, highest=1000, above=True)

# Training.
STEPS = Whole(lowest=1, highest=10**9, unit="steps")
WARMUP_STEPS = Whole(lowest=0, highest=10**9, unit="steps")
LEARNING_RATE = Real(lowest=0, highest=1e30, above=True)  # a run that diverges says so itself
DECAY = Real(lowest=0, highest=1, below=True)  # of a running average
WEIGHT_DECAY = Real(lowest=0, highest=1000)
GRADIENT_NORM = Real(lowest=0, highest=1e30, above=True)
LOSS_WEIGHT = Real(lowest=0, highest=10**6)
NATS = Real(lowest=0, highest=10**6, above=True, unit="nats")
PART = Real(lowest=0, highest=1, above=True, below=True)  # a share that leaves something on both sides
SHARE = Real(lowest=0, highest=1, below=True)  # a share that may be nothing
PROBABILITY = Real(lowest=0, highest=1, above=True, below=True)
VALIDATIONS = Whole(lowest=1, highest=10**9, unit="validations")
CHECKPOINTS = Whole(lowest=2, highest=10**6, unit="checkpoints")
ROLLBACKS = Whole(lowest=0, highest=10**6, unit="times")
