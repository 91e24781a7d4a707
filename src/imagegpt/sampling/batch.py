"""Images that are drawn together, and the plain way to draw them: pixel after pixel.

All state is in tensors on the model's device, indexed by position, so that nothing in a loop waits for the device:

    position    0    1    2  ...  T-1   T
    tokens     sos  x_0  x_1 ...  ...  x_{T-1}     what is fed at a position; one row each, of all images

Images may start at different positions. One that is finished is fed its last position again, which draws the same pixel
again.

Axes: B images, T pixels, n positions fed at once, V colours.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from imagegpt.sampling.decoder import Decoder
from imagegpt.sampling.recording import Recorder
from imagegpt.sampling.rules import SamplingRules, gumbel_noise, score, seed_tensor

_NOISE_CHUNK = 1 << 16  # numbers computed at once: enough to hide the cost of a call, 5 MB while computing


class LogitsNotFiniteError(ValueError):
    """The model's logits are not numbers."""


class Batch:
    """Room for images that are drawn together; its tensors stay where they are from one drawing to the next.

    Args:
        num_images: B.
        num_pixels: T.
        num_colors: V; the start token is the colour after the last.
        rules: how pixels are drawn.
        device: of the model.

    Attributes:
        starts: for each image, the pixels that are given.
        tokens: (T + 1, B), see above; the rows from an image's start on are still to be drawn.
        position: (B,) the next position to feed, which is also the next pixel to draw.
        guessed: (B,) up to which pixel something was drawn already, right or wrong; for `parallel`.
        logits_sum: finite unless a logit was not.
    """

    def __init__(
        self, num_images: int, num_pixels: int, num_colors: int, rules: SamplingRules, device: torch.device
    ) -> None:
        self.num_pixels, self.rules = num_pixels, rules
        self.starts: list[int] = [0] * num_images
        self.tokens: Int64[Tensor, "t1 b"] = torch.zeros(num_pixels + 1, num_images, dtype=torch.int64, device=device)
        self.tokens[0] = num_colors
        self.position: Int64[Tensor, " b"] = torch.zeros(num_images, dtype=torch.int64, device=device)
        self.guessed: Int64[Tensor, " b"] = torch.zeros_like(self.position)
        self._given: Int64[Tensor, " b"] = torch.zeros_like(self.position)  # starts, where the loop can see them
        self.logits_sum: Float32[Tensor, ""] = torch.zeros((), device=device)
        self._noise: Float32[Tensor, "t b v"] | None = None
        if not rules.is_greedy:
            self._noise = torch.empty(num_pixels, num_images, num_colors, device=device)

    def start(self, prompts: Sequence[Int64[Tensor, " p"]], seeds: Sequence[int]) -> None:
        """Begin new images, as the prompts do."""
        self.starts = [len(prompt) for prompt in prompts]
        tokens = torch.zeros(self.num_pixels, len(prompts), dtype=torch.int64)
        for index, prompt in enumerate(prompts):
            tokens[: len(prompt), index] = prompt
        self.tokens[1:] = tokens.to(self.tokens.device)
        self.position.copy_(torch.tensor(self.starts))
        self.guessed.copy_(self.position)
        self._given.copy_(self.position)
        self.logits_sum.zero_()
        if self._noise is not None:
            _fill_with_noise(self._noise, seed_tensor(seeds, self.tokens.device))

    def draw(self, logits: Float32[Tensor, "b n v"], positions: Int64[Tensor, "b n"]) -> Int64[Tensor, "b n"]:
        """Draw the pixels whose logits the positions gave, and put them where they belong."""
        return self.put(self.scores(logits, positions).argmax(dim=-1), positions)

    def scores(self, logits: Float32[Tensor, "b n v"], positions: Int64[Tensor, "b n"]) -> Float32[Tensor, "b n v"]:
        """What the largest of is drawn, see `rules.score`."""
        self.logits_sum += logits.sum()  # looked at once, at the end: looking waits for the device
        noise = None
        if self._noise is not None:
            images = torch.arange(len(positions), device=positions.device).unsqueeze(1)
            noise = self._noise[positions, images].flatten(0, 1)
        return score(logits.flatten(0, 1), noise, self.rules).view(logits.shape)

    def put(self, drawn: Int64[Tensor, "b n"], positions: Int64[Tensor, "b n"]) -> Int64[Tensor, "b n"]:
        """Put pixels where they belong; gives what is there now.

        A prompt that is a whole image is fed its last position, too; what is given there stays.
        """
        given = self.tokens.gather(0, positions.t() + 1).t()
        drawn = torch.where(positions < self._given.unsqueeze(1), given, drawn)
        self.tokens.scatter_(0, positions.t() + 1, drawn.t())
        return drawn

    def check_finite(self) -> None:
        """Raise LogitsNotFiniteError if a logit was not finite."""
        if not torch.isfinite(self.logits_sum):
            raise LogitsNotFiniteError("the model's logits are not finite: its weights are damaged, or need float32")


def draw_sequentially(decoder: Decoder, batch: Batch, recorder: Recorder) -> Iterator[int]:
    """Draw all that is left, one pixel of each image at a time.

    Yields: after each step, how many pixels of every image are there.
    Raises: LogitsNotFiniteError at the end.
    """
    num_pixels, first, last = batch.num_pixels, min(batch.starts), max(batch.starts)
    for done in range(first, num_pixels):
        length = decoder.cache.rounded(min(last + done - first + 1, num_pixels))
        recorder.run((1, length), lambda length=length: _draw_next(decoder, batch, length))
        yield done + 1
    batch.check_finite()


def _draw_next(decoder: Decoder, batch: Batch, length: int) -> None:
    position = batch.position.clamp(max=batch.num_pixels - 1).unsqueeze(1)
    batch.draw(decoder.feed(batch.tokens.gather(0, position.t()).t().contiguous(), position, length), position)
    batch.position += 1


def _fill_with_noise(noise: Float32[Tensor, "t b v"], seeds: Int64[Tensor, " b"]) -> None:
    """Compute the noise of all pixels, some at a time."""
    num_pixels, num_images, num_colors = noise.shape
    chunk = max(1, _NOISE_CHUNK // (num_images * num_colors))
    for start in range(0, num_pixels, chunk):
        pixels = torch.arange(start, min(start + chunk, num_pixels))
        noise[start : start + chunk] = gumbel_noise(seeds, pixels, num_colors).transpose(0, 1)
