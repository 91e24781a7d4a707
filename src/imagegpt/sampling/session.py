"""Images that are being sampled: rows, each with its own prompt, seed, rules and position, that come and go.

All state is in tensors on the model's device. What a row becomes depends on its own prompt, seed and rules only.

    position    0    1    2  ...  T-1   T
    tokens     sos  x_0  x_1 ...  ...  x_{T-1}     what is fed at a position, of each row

Axes: R rows, B rows that are fed, P pixels of a prompt, T pixels of the images, n positions fed at once, V colours.
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
from imagegpt.sampling.rules import SamplingRules, gumbel_noise, score, seed_tensor

# Numbers of noise computed at once, for 80 bytes each meanwhile: enough to hide the cost of a call, which on a GPU is
# 177 launches.
_NOISE_CHUNK_ON_CPU, _NOISE_CHUNK = 1 << 16, 1 << 22


class LogitsNotFiniteError(ValueError):
    """The model's logits are not numbers."""


@dataclass
class Statistics:
    """What drawing took.

    Args:
        num_pixels: drawn, of all images.
        num_passes: over an image that was not finished, of all images.
        lengths: how many passes over all rows were made with how many positions.
    """

    num_pixels: int = 0
    num_passes: int = 0
    lengths: dict[int, int] = field(default_factory=dict)

    def add(self, accepted: int, active: int, length: int) -> None:
        """Count a pass that drew `accepted` pixels of `active` images."""
        self.num_pixels += accepted
        self.num_passes += active
        self.lengths[length] = self.lengths.get(length, 0) + 1

    def __add__(self, other: "Statistics") -> "Statistics":
        lengths = {n: self.lengths.get(n, 0) + other.lengths.get(n, 0) for n in (*self.lengths, *other.lengths)}
        return Statistics(self.num_pixels + other.num_pixels, self.num_passes + other.num_passes, lengths)

    @property
    def pixels_per_pass(self) -> float:
        """Pixels drawn of an image in a pass, on average."""
        return self.num_pixels / self.num_passes if self.num_passes else 0.0


class Decoder(ABC):
    """Draws pixels of rows. One decoder serves one session, and may keep in mind what it has seen."""

    @abstractmethod
    def advance(self, session: "Session", rows: list[int]) -> None:
        """Draw at least the next pixel of each of these rows, and move their positions on."""


class SequentialDecoder(Decoder):
    """One pixel after the other."""

    def advance(self, session: "Session", rows: list[int]) -> None:
        """See `Decoder`."""
        positions = on_device([[session.positions[row]] for row in rows], session.tokens.device)
        tokens = session.tokens[session.index(rows)].gather(1, positions)
        session.put(rows, session.scores(rows, tokens, positions).argmax(dim=-1), positions)
        for row in rows:
            session.positions[row] += 1
        session.statistics.add(len(rows), len(rows), 1)


class Session:
    """Rows that are sampled together. It is not safe to use one from several threads at once; use one session each.

    Args:
        backend: computes the steps.
        capacity: R.
        num_pixels: T.
        device: of the backend.
        decoder: draws the next pixels; None draws one at a time.

    Attributes:
        statistics: of what was drawn so far.
        num_pixels: T.
        positions: of each row, the next position to feed, which is also the number of its pixels that are there.
        tokens: (R, T + 1), see above.
    """

    def __init__(
        self,
        backend: StepBackend,
        capacity: int,
        num_pixels: int,
        device: torch.device | str,
        decoder: "Decoder | None" = None,
    ) -> None:
        self.num_pixels, self.backend = num_pixels, backend
        self.statistics = Statistics()
        self._decoder = SequentialDecoder() if decoder is None else decoder
        self.positions: list[int] = [0] * capacity
        self.tokens: Int64[Tensor, "r t1"] = torch.zeros(capacity, num_pixels + 1, dtype=torch.int64, device=device)
        self.tokens[:, 0] = backend.num_colors
        self._rules: list[SamplingRules | None] = [None] * capacity
        self._free = list(range(capacity))  # a heap: the first free row is taken first
        self._noise: Float32[Tensor, "r t v"] | None = None  # made when a row needs some
        self._without_noise: dict[int, int] = {}  # rows and their seeds
        self._sums: Float32[Tensor, " r"] = torch.zeros(capacity, device=device)  # finite unless a logit was not

    @torch.inference_mode()
    def admit(self, prompt: Int64[Tensor, " p"], seed: int, rules: SamplingRules) -> int:
        """Begin an image.

        Args:
            prompt: its first pixels, at most T.
            seed: 0 to 2^64 - 1.
            rules: how its pixels are drawn.
        Returns: its row.
        Raises: ValueError if all rows are taken, or the prompt is too long.
        """
        if not self._free:
            raise ValueError(f"all {len(self._rules)} rows are taken: release one, or open a larger session")
        if len(prompt) > self.num_pixels:
            raise ValueError(
                f"the prompt has {len(prompt)} pixels, the images are to have {self.num_pixels}: shorten it"
            )
        seed, row = ranges.SEED.check("seed", seed), self._free[0]
        if len(prompt) < self.num_pixels:
            with without_autocast(self.tokens.device):
                self.backend.admit(row, prompt.to("cpu", torch.int64))
        self.tokens[row, 1 : len(prompt) + 1] = prompt.to(self.tokens.device)
        if not rules.is_greedy:
            self._without_noise[row] = seed
        self._sums[row] = 0
        self.positions[row] = len(prompt)
        self._rules[heapq.heappop(self._free)] = rules
        return row

    @torch.inference_mode()
    def step(self) -> None:
        """Draw the next pixel, or pixels, of each row that is not finished."""
        self._fill_with_noise()
        if rows := self.unfinished():
            self._decoder.advance(self, rows)

    def unfinished(self) -> list[int]:
        """The rows that have pixels left to draw."""
        taken = (row for row, rules in enumerate(self._rules) if rules is not None)
        return [row for row in taken if self.positions[row] < self.num_pixels]

    def scores(
        self, rows: Sequence[int], tokens: Int64[Tensor, "b n"], positions: Int64[Tensor, "b n"]
    ) -> Float32[Tensor, "b n v"]:
        """Feed tokens and get the scores of the pixels at their positions: the colour with the largest is drawn."""
        longest = max(self.positions[row] for row in rows) + tokens.shape[1]
        with without_autocast(tokens.device):
            logits = self.backend.step(tokens, positions, rows, min(longest, self.num_pixels))
        index = self.index(rows)
        self._sums[index] += logits.sum(dim=(1, 2))  # looked at once, at the end: looking waits for the device
        return self._scored(logits, rows, index, positions)

    def put(self, rows: Sequence[int], pixels: Int64[Tensor, "b n"], positions: Int64[Tensor, "b n"]) -> None:
        """Put pixels where they belong; the positions of the rows are for the decoder to move on."""
        index = self.index(rows)
        images = index if isinstance(index, Tensor) else torch.arange(index.start, index.stop, device=pixels.device)
        self.tokens[images.unsqueeze(1), positions + 1] = pixels

    def pixels(self, row: int) -> Int64[Tensor, " t"]:
        """The pixels of a row, of which those from its position on are not drawn yet."""
        return self.tokens[row, 1:]

    def release(self, row: int) -> None:
        """End a row, so that another image can have its place.

        Raises: LogitsNotFiniteError if the logits of one of its pixels were not finite; ValueError if it holds none.
        """
        if self._rules[row] is None:
            raise ValueError(f"row {row} holds no image: release rows that `admit` gave, once")
        self.backend.release(row)
        self._without_noise.pop(row, None)
        self._rules[row] = None
        heapq.heappush(self._free, row)
        if not torch.isfinite(self._sums[row]):
            raise LogitsNotFiniteError("the model's logits are not finite: its weights are damaged, or need float32")

    def index(self, rows: Sequence[int]) -> slice | Tensor:
        """Rows as an index, a slice where they are neighbours, which copies nothing."""
        if list(rows) == list(range(rows[0], rows[0] + len(rows))):
            return slice(rows[0], rows[0] + len(rows))
        return on_device(rows, self.tokens.device)

    def _scored(
        self, logits: Float32[Tensor, "b n v"], rows: Sequence[int], index: slice | Tensor, positions: Tensor
    ) -> Float32[Tensor, "b n v"]:
        """Logits by the rules of each row, with its noise."""
        different = {self._rules[row] for row in rows}
        if len(different) == 1:
            return self._scored_alike(logits, index, positions, self._rules[rows[0]])
        scores = torch.empty_like(logits)
        for rules in different:
            those = [place for place, row in enumerate(rows) if self._rules[row] == rules]
            at = on_device(those, logits.device)
            of_rules = self.index([rows[place] for place in those])
            scores[at] = self._scored_alike(logits[at], of_rules, positions[at], rules)
        return scores

    def _scored_alike(
        self, logits: Tensor, index: slice | Tensor, positions: Tensor, rules: SamplingRules | None
    ) -> Tensor:
        assert rules is not None
        noise = None
        if not rules.is_greedy:
            assert self._noise is not None
            own = self._noise[index]
            noise = own[torch.arange(len(own), device=own.device).unsqueeze(1), positions].flatten(0, 1)
        return score(logits.flatten(0, 1), noise, rules).view(logits.shape)

    def _fill_with_noise(self) -> None:
        """Compute the noise of the rows that have none yet, some numbers at a time."""
        rows, device = list(self._without_noise), self.tokens.device
        if not rows:
            return
        if self._noise is None:
            shape = len(self._rules), self.num_pixels, self.backend.num_colors
            self._noise = torch.empty(shape, device=device)
        seeds, index = seed_tensor(list(self._without_noise.values()), device), self.index(rows)
        most = _NOISE_CHUNK_ON_CPU if device.type == "cpu" else _NOISE_CHUNK
        chunk = max(1, most // (len(rows) * self.backend.num_colors))
        for first in range(min(self.positions[row] for row in rows), self.num_pixels, chunk):
            pixels = torch.arange(first, min(first + chunk, self.num_pixels))
            self._noise[index, first : first + chunk] = gumbel_noise(seeds, pixels, self.backend.num_colors)
        self._without_noise.clear()


def on_device(numbers: Sequence[Any], device: torch.device) -> Int64[Tensor, "..."]:
    """Whole numbers as a tensor, without waiting for what a GPU still has to do."""
    return torch.tensor(numbers, dtype=torch.int64).to(device, non_blocking=True)


def without_autocast(device: torch.device) -> torch.autocast:
    """Keeps the caller's autocast out: a step's precision is the plan's."""
    return torch.autocast(device.type, enabled=False)
