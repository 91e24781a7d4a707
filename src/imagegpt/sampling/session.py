"""A session: images being sampled together. Each is a row with its own prompt, seed, rules and position.

All state lives in tensors on the model's device. The pixels of a row depend on its own prompt, seed and rules only, so
that rows can be admitted and released at any time (continuous batching).

    position    0    1    2  ...  T-1   T
    tokens     sos  x_0  x_1 ...  ...  x_{T-1}     the model's input at each position, for each row

Axes: R rows, B rows of one call, P pixels of a prompt, T pixels of the images, n positions per call, V colours.
"""

import heapq
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from imagegpt.common import ranges
from imagegpt.sampling.backends.base import StepBackend
from imagegpt.sampling.noise import gumbel_noise, seed_tensor
from imagegpt.sampling.rules import SamplingRules, gumbel_scores

# Noise values computed per call, which takes 80 bytes of temporary memory for each: enough to hide the overhead of a
# call, which on a GPU is 177 kernel launches.
_NOISE_CHUNK_ON_CPU, _NOISE_CHUNK = 1 << 16, 1 << 22


class LogitsNotFiniteError(ValueError):
    """The model's logits contain NaN or infinity."""

    def __init__(self) -> None:
        super().__init__("the model's logits are not finite: its weights are damaged, or need float32 precision")


@dataclass
class Statistics:
    """Decoding statistics.

    Args:
        num_pixels: pixels sampled, over all images.
        num_passes: forward passes, counted once for each unfinished image.
        passes_by_length: passes over the batch, by the number of positions fed.
    """

    num_pixels: int = 0
    num_passes: int = 0
    passes_by_length: dict[int, int] = field(default_factory=dict)

    def add(self, num_accepted: int, num_images: int, length: int) -> None:
        """Record a pass that accepted `num_accepted` pixels in `num_images` images."""
        self.num_pixels += num_accepted
        self.num_passes += num_images
        self.passes_by_length[length] = self.passes_by_length.get(length, 0) + 1

    def __add__(self, other: "Statistics") -> "Statistics":
        mine, theirs = self.passes_by_length, other.passes_by_length
        passes_by_length = {length: mine.get(length, 0) + theirs.get(length, 0) for length in (*mine, *theirs)}
        return Statistics(self.num_pixels + other.num_pixels, self.num_passes + other.num_passes, passes_by_length)

    @property
    def pixels_per_pass(self) -> float:
        """Pixels accepted per image and pass, on average."""
        return self.num_pixels / self.num_passes if self.num_passes else 0.0


class Decoder(ABC):
    """Samples pixels of rows. A decoder serves one session and may keep state."""

    @abstractmethod
    def advance(self, session: "Session", rows: list[int]) -> None:
        """Sample at least the next pixel of each row, and advance the rows' positions."""


class Session:
    """Rows that are sampled together. Not thread-safe: use one session per thread.

    Args:
        capacity: R.
        num_pixels: T.

    Attributes:
        statistics: of all pixels sampled so far.
        positions: of each row, the next position to feed, which equals the number of pixels it has.
        tokens: (R, T + 1), see above.
    """

    def __init__(
        self,
        backend: StepBackend,
        decoder: Decoder,
        capacity: int,
        num_pixels: int,
        device: torch.device | str,
    ) -> None:
        self.num_pixels, self.backend = num_pixels, backend
        self.statistics = Statistics()
        self._decoder = decoder
        self.positions: list[int] = [0] * capacity
        self.tokens: Int64[Tensor, "r t1"] = torch.zeros(capacity, num_pixels + 1, dtype=torch.int64, device=device)
        self.tokens[:, 0] = backend.num_colors
        self._rules: list[SamplingRules | None] = [None] * capacity
        self._free_rows = list(range(capacity))  # a heap: the lowest free row comes first
        self._noise: Float32[Tensor, "r t v"] | None = None  # allocated when a row first needs it
        self._seeds_without_noise: dict[int, int] = {}  # by row
        self._logit_sums: Float32[Tensor, " r"] = torch.zeros(capacity, device=device)  # NaN or inf if a logit was

    @torch.inference_mode()
    def admit(self, prompt: Int64[Tensor, " p"], seed: int, rules: SamplingRules) -> int:
        """Start an image.

        Args:
            prompt: its first pixels, at most T.
            seed: 0 to 2^64 - 1.
        Returns: its row.
        Raises: ValueError if all rows are taken, or the prompt is too long.
        """
        if not self._free_rows:
            raise ValueError(f"all {len(self._rules)} rows are taken: release one, or open a larger session")
        if len(prompt) > self.num_pixels:
            raise ValueError(
                f"the prompt has {len(prompt)} pixels, but the images have only {self.num_pixels}: shorten the prompt"
            )
        seed, row = ranges.SEED.check("seed", seed), self._free_rows[0]
        if len(prompt) < self.num_pixels:
            with without_autocast(self.tokens.device):
                self.backend.admit(row, prompt.to("cpu", torch.int64))
        self.tokens[row, 1 : len(prompt) + 1] = prompt.to(self.tokens.device)
        if not rules.is_greedy:
            self._seeds_without_noise[row] = seed
        self._logit_sums[row] = 0
        self.positions[row] = len(prompt)
        self._rules[heapq.heappop(self._free_rows)] = rules
        return row

    @torch.inference_mode()
    def step(self) -> None:
        """Sample the next pixel, or pixels, of each unfinished row."""
        self._generate_noise()
        if rows := self.unfinished():
            self._decoder.advance(self, rows)

    def unfinished(self) -> list[int]:
        """The rows with pixels left to sample."""
        taken = (row for row, rules in enumerate(self._rules) if rules is not None)
        return [row for row in taken if self.positions[row] < self.num_pixels]

    def compute_scores(
        self, rows: Sequence[int], tokens: Int64[Tensor, "b n"], positions: Int64[Tensor, "b n"]
    ) -> Float32[Tensor, "b n v"]:
        """Run the model on tokens at these positions; return the scores of the pixels there, see `gumbel_scores`."""
        longest = max(self.positions[row] for row in rows) + tokens.shape[1]
        with without_autocast(tokens.device):
            logits = self.backend.step(tokens, positions, rows, min(longest, self.num_pixels))
        index, noise = self.row_index(rows), None
        self._logit_sums[index] += logits.sum(dim=(1, 2))  # checked in `release`: a check here would wait for the GPU
        if self._noise is not None:
            row_noise = self._noise[index]
            noise = row_noise[torch.arange(len(rows), device=tokens.device).unsqueeze(1), positions]
        return self._apply_rules(logits, noise, rows)

    def write_pixels(self, rows: Sequence[int], pixels: Int64[Tensor, "b n"], positions: Int64[Tensor, "b n"]) -> None:
        """Store sampled pixels. The decoder advances the positions of the rows."""
        index = self.row_index(rows)
        row_index = torch.arange(index.start, index.stop, device=pixels.device) if isinstance(index, slice) else index
        self.tokens[row_index.unsqueeze(1), positions + 1] = pixels

    def pixels(self, row: int) -> Int64[Tensor, " t"]:
        """The pixels of a row; those from its position on are not final."""
        return self.tokens[row, 1:]

    def release(self, row: int) -> None:
        """Free a row for another image.

        Raises: LogitsNotFiniteError if a logit of the image was NaN or infinite; ValueError if the row is free already.
        """
        if self._rules[row] is None:
            raise ValueError(f"row {row} holds no image: release each row that `admit` returned once")
        self.backend.release(row)
        self._seeds_without_noise.pop(row, None)
        self._rules[row] = None
        heapq.heappush(self._free_rows, row)
        if not torch.isfinite(self._logit_sums[row]):
            raise LogitsNotFiniteError

    def row_index(self, rows: Sequence[int]) -> slice | Tensor:
        """Rows as an index: a slice, which copies nothing, if they are consecutive."""
        if list(rows) == list(range(rows[0], rows[0] + len(rows))):
            return slice(rows[0], rows[0] + len(rows))
        return index_tensor(rows, self.tokens.device)

    def _apply_rules(
        self, logits: Float32[Tensor, "b n v"], noise: Float32[Tensor, "b n v"] | None, rows: Sequence[int]
    ) -> Float32[Tensor, "b n v"]:
        """Turn logits into scores by each row's rules."""
        distinct = {rules for rules in (self._rules[row] for row in rows) if rules is not None}
        if len(distinct) == 1:
            return _scores(logits, noise, *distinct)
        scores = torch.empty_like(logits)
        for rules in distinct:
            places = [place for place, row in enumerate(rows) if self._rules[row] == rules]
            index = index_tensor(places, logits.device)
            scores[index] = _scores(logits[index], None if noise is None else noise[index], rules)
        return scores

    def _generate_noise(self) -> None:
        """Compute the noise of newly admitted rows, in chunks."""
        rows, device = list(self._seeds_without_noise), self.tokens.device
        if not rows:
            return
        if self._noise is None:
            shape = len(self._rules), self.num_pixels, self.backend.num_colors
            self._noise = torch.empty(shape, device=device)
        seeds, index = seed_tensor(list(self._seeds_without_noise.values()), device), index_tensor(rows, device)
        max_values = _NOISE_CHUNK_ON_CPU if device.type == "cpu" else _NOISE_CHUNK
        chunk = max(1, max_values // (len(rows) * self.backend.num_colors))
        for first in range(min(self.positions[row] for row in rows), self.num_pixels, chunk):
            pixels = torch.arange(first, min(first + chunk, self.num_pixels))
            self._noise[index, first : first + chunk] = gumbel_noise(seeds, pixels, self.backend.num_colors)
        self._seeds_without_noise.clear()


def _scores(logits: Tensor, noise: Tensor | None, rules: SamplingRules) -> Tensor:
    flat_noise = None if noise is None else noise.flatten(0, 1)
    return gumbel_scores(logits.flatten(0, 1), flat_noise, rules).view(logits.shape)


def index_tensor(numbers: Sequence[Any], device: torch.device) -> Int64[Tensor, "..."]:
    """Convert integers to a tensor without waiting for pending GPU work."""
    return torch.tensor(numbers, dtype=torch.int64).to(device, non_blocking=True)


def without_autocast(device: torch.device) -> torch.autocast:
    """Disable the caller's autocast: the plan decides the precision of a step."""
    return torch.autocast(device.type, enabled=False)
