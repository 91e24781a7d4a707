"""Images that are drawn together, and the plain way to draw them: pixel after pixel.

All state is in tensors on the model's device, indexed by position, so that nothing in a loop waits for the device:

    position    0    1    2  ...  T-1   T
    tokens     sos  x_0  x_1 ...  ...  x_{T-1}     what is fed at a position; one row each, of all images

Images may start at different positions. One that is finished is fed its last position again, which draws the same pixel
again.

Axes: B images, T pixels, n positions fed at once, V colours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from imagegpt.sampling.decoder import Decoder
from imagegpt.sampling.rules import SamplingRules, draw, gumbel_noise, seed_tensor

_NOISE_CHUNK = 1 << 18  # numbers computed at once: enough to hide the cost of a call, some MB while computing


class LogitsNotFiniteError(ValueError):
    """The model's logits are not numbers."""


@dataclass
class Batch:
    """Images being drawn.

    Args:
        tokens: (T + 1, B), see above; the rows from an image's start on are still to be drawn.
        starts: for each image, the pixels that are given.
        noise: (T, B, V), or None if the rules are greedy.
        rules: how pixels are drawn.
    """

    tokens: Int64[Tensor, "t1 b"]
    starts: list[int]
    noise: Float32[Tensor, "t b v"] | None
    rules: SamplingRules

    @classmethod
    def of(
        cls,
        prompts: Sequence[Int64[Tensor, " p"]],
        seeds: Sequence[int],
        rules: SamplingRules,
        num_pixels: int,
        num_colors: int,
        device: torch.device,
    ) -> "Batch":
        """Images that start as the prompts do; the start token is the colour after the last."""
        tokens = torch.zeros(num_pixels + 1, len(prompts), dtype=torch.int64)
        tokens[0] = num_colors
        for index, prompt in enumerate(prompts):
            tokens[1 : len(prompt) + 1, index] = prompt
        noise = None if rules.is_greedy else _noise(seed_tensor(seeds, device), num_pixels, num_colors)
        return cls(tokens.to(device), [len(prompt) for prompt in prompts], noise, rules)

    @property
    def num_pixels(self) -> int:
        """Pixels of an image, T."""
        return self.tokens.shape[0] - 1

    def draw(self, logits: Float32[Tensor, "b n v"], positions: Int64[Tensor, "b n"]) -> Int64[Tensor, "b n"]:
        """Draw the pixels whose logits the positions gave."""
        noise = None
        if self.noise is not None:
            noise = self.noise[positions, torch.arange(len(positions), device=positions.device).unsqueeze(1)].flatten(
                0, 1
            )
        return draw(logits.flatten(0, 1), noise, self.rules).view(positions.shape)


def draw_sequentially(decoder: Decoder, batch: Batch) -> Iterator[int]:
    """Draw all that is left, one pixel of each image at a time.

    Yields: after each step, how many pixels of every image are there.
    Raises: LogitsNotFiniteError at the end.
    """
    num_pixels, latest = batch.num_pixels, max(batch.starts)
    position = torch.tensor(batch.starts, device=batch.tokens.device).clamp_(max=num_pixels - 1).unsqueeze(1)
    check = torch.zeros((), device=batch.tokens.device)
    for done in range(min(batch.starts), num_pixels):
        length = min(latest + done - min(batch.starts) + 1, num_pixels)
        logits = decoder.feed(batch.tokens.gather(0, position.t()).t().contiguous(), position, length)
        batch.tokens.scatter_(0, position.t() + 1, batch.draw(logits, position).t())
        check += logits.sum()  # looked at once, at the end: looking waits for the device
        position = (position + 1).clamp_(max=num_pixels - 1)
        yield done + 1
    check_finite(check)


def check_finite(total: Tensor) -> None:
    """Raise LogitsNotFiniteError if a sum of logits says that one of them was not finite."""
    if not torch.isfinite(total):
        raise LogitsNotFiniteError("the model's logits are not finite: its weights are damaged, or need float32")


def _noise(seeds: Int64[Tensor, " b"], num_pixels: int, num_colors: int) -> Float32[Tensor, "t b v"]:
    """The noise of all pixels, computed some at a time."""
    noise = torch.empty(num_pixels, len(seeds), num_colors, device=seeds.device)
    chunk = max(1, _NOISE_CHUNK // (len(seeds) * num_colors))
    for start in range(0, num_pixels, chunk):
        pixels = torch.arange(start, min(start + chunk, num_pixels))
        noise[pixels[0] : pixels[-1] + 1] = gumbel_noise(seeds, pixels, num_colors).transpose(0, 1)
    return noise
