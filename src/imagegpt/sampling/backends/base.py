"""What computes a step: tokens in, logits out. Three implementations: `cpp_backend`, `torch_backend`, `cuda_backend`.

Axes: B images, P pixels of a prompt, n positions fed at once, V colours.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float32, Int64
from torch import Tensor


class StepBackend(ABC):
    """Keys and values of some images, and the model that adds to them.

    Rows are numbered from 0 to the capacity. A row is admitted with its prompt, fed, and released. What is computed for
    it depends on its own tokens only; `CppStep` gives the same bits whatever it is computed with.

    Args:
        num_colors: V; the start token is the colour after the last.
    """

    def __init__(self, num_colors: int) -> None:
        self.num_colors = num_colors

    @abstractmethod
    def admit(self, row: int, prompt: Int64[Tensor, " p"]) -> None:
        """Read a prompt but for its last pixel, so that position P can be fed next: with that pixel, or the start token
        if there is none.
        """

    @abstractmethod
    def step(
        self, tokens: Int64[Tensor, "b n"], positions: Int64[Tensor, "b n"], rows: Sequence[int], longest: int
    ) -> Float32[Tensor, "b n v"]:
        """Feed tokens and get the logits of the pixels at their positions.

        Args:
            tokens: what stands at `positions`: the start token at 0, pixel p - 1 at p.
            positions: in order; what is cached at earlier ones is seen, at later ones not.
            rows: of the images, in order.
            longest: one more than the largest position, which the device need not be asked for.
        """

    @abstractmethod
    def release(self, row: int) -> None:
        """Let go of what a row has cached."""

    @property
    @abstractmethod
    def cache_bytes(self) -> int:
        """Size of all keys and values, in bytes."""

    def redraw(
        self,
        scores: Float32[Tensor, "b n v"],
        fed: Int64[Tensor, "b n"],
        positions: Int64[Tensor, "b n"],
        influence: Float32[Tensor, "v v"],
    ) -> Int64[Tensor, "b n"]:
        """Draw again behind wrong drafts, see `drafting.redrawn`, which says what the arguments are."""
        drawn = [scores[:, 0].argmax(dim=-1)]
        for index in range(1, scores.shape[1]):
            shift = influence[drawn[-1]] - influence[fed[:, index]]
            is_new = positions[:, index] > positions[:, index - 1]
            drawn.append(torch.where(is_new, (scores[:, index] + shift).argmax(dim=-1), drawn[-1]))
        return torch.stack(drawn, dim=1)
