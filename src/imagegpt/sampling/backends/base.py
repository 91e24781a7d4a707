"""The interface of the backends, which compute a decoding step: tokens in, logits out.

Axes: B images, P pixels of a prompt, n positions per step, V colours.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float32, Int64
from torch import Tensor


class StepBackend(ABC):
    """A model and its KV cache.

    The cache has one row per image, numbered from 0 to the capacity. A row is admitted with its prompt, stepped, and
    released. Its logits depend on its own tokens only; `CppBackend` computes the same bits in any batch.

    Args:
        num_colors: V, which is also the id of the start token.
    """

    def __init__(self, num_colors: int) -> None:
        self.num_colors = num_colors

    @abstractmethod
    def admit(self, row: int, prompt: Int64[Tensor, " p"]) -> None:
        """Prefill a row with all of its prompt except the last pixel.

        The next step feeds position P: the last pixel of the prompt, or the start token if the prompt is empty.
        """

    @abstractmethod
    def step(
        self, tokens: Int64[Tensor, "b n"], positions: Int64[Tensor, "b n"], rows: Sequence[int], longest: int
    ) -> Float32[Tensor, "b n v"]:
        """Feed tokens, extend the cache, and return the logits of the pixels at their positions.

        Args:
            tokens: the input at `positions`: the start token at 0, pixel p - 1 at p.
            positions: ascending in each row; a position attends to itself and to earlier ones.
            rows: ascending.
            longest: one more than the largest position, so that nothing has to wait for a GPU to know it.
        """

    @abstractmethod
    def release(self, row: int) -> None:
        """Free the cache of a row."""

    def redraft(
        self,
        scores: Float32[Tensor, "b n v"],
        tokens: Int64[Tensor, "b n"],
        positions: Int64[Tensor, "b n"],
        bigrams: Float32[Tensor, "v v"],
    ) -> Int64[Tensor, "b n"]:
        """Sample pixels, correcting the scores after wrong drafts; see `drafting.redraft` for the arguments."""
        pixels = [scores[:, 0].argmax(dim=-1)]
        for index in range(1, scores.shape[1]):
            correction = bigrams[pixels[-1]] - bigrams[tokens[:, index]]
            is_new = positions[:, index] > positions[:, index - 1]
            pixels.append(torch.where(is_new, (scores[:, index] + correction).argmax(dim=-1), pixels[-1]))
        return torch.stack(pixels, dim=1)
