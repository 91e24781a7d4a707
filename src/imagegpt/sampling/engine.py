"""The sampler: prompts in, whole images out, one pixel a step.

Prompts are read in one pass (each distinct prompt once, however many images continue it), then every step feeds the
pixels just drawn and draws the next. The position that is fed with the start token predicts pixel 0:

    fed        sos  x_0  x_1 ...  x_{T-2}
    predicts   x_0  x_1  x_2 ...  x_{T-1}

Axes: B images, P pixels of the prompts, T pixels of the images, V colours.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.sampling.cache import continue_prefill
from imagegpt.sampling.rules import SamplingRules, draw, gumbel_noise, seed_tensor

OnPixel = Callable[[int, Int64[Tensor, " b"]], None]

_NOISE_CHUNK = 1 << 18  # numbers computed at once: enough to hide the cost of a call, 1 MB, 2 MB more while computing


class Sampler:
    """Draws images from a model.

    An image depends on its prompt, its seed, the rules and the weights; not on the other images of the batch. That is
    exact for the noise. The logits of other batch sizes may differ in their last bits (matrix products sum in another
    order), which changes a pixel only if its two best candidates are that close: about one in a million in float32.

    Args:
        model: a causal model of ours, used as it is (its dtype, device and attention backend) and not changed.
    Raises: TypeError for a model without the generative head; ValueError for one that is bidirectional or has
        cross-attention, and so cannot draw pixels in order.
    """

    def __init__(self, model: ImageGPTForCausalImageModeling) -> None:
        if not isinstance(model, ImageGPTForCausalImageModeling):
            raise TypeError(f"a {type(model).__name__} cannot draw images: give an ImageGPTForCausalImageModeling")
        if not model.config.is_causal:
            raise ValueError(
                "this model is bidirectional (is_causal=False) and cannot draw pixels in order: give a causal one"
            )
        if model.config.add_cross_attention:
            raise ValueError(
                "this model has cross-attention (add_cross_attention=True) and needs an encoder: use its generate()"
            )
        self.model = model

    def generate(
        self,
        prompts: Int64[Tensor, "b p"] | None = None,
        *,
        seeds: Sequence[int],
        rules: SamplingRules | None = None,
        num_pixels: int | None = None,
        on_pixel: OnPixel | None = None,
    ) -> Int64[Tensor, "b t"]:
        """Draw images, or the rest of them.

        Args:
            prompts: the first pixels of each image, colour ids without the start token; None starts from nothing.
            seeds: one seed an image, 0 to 2^64 - 1, see `image_seed`.
            rules: how pixels are drawn; None is the model's own distribution.
            num_pixels: T, of the images, prompt included; None means all that the model has positions for.
            on_pixel: called after each step with the index of the pixel and its colours (B,), on the model's device;
                reading them there waits for the device.
        Returns: whole images, prompts included, on the model's device. A prompt of T pixels comes back as it is.
        Raises: ValueError for prompts, seeds or lengths that do not fit the model or each other, a model in training
            mode, or logits that are not finite.
        """
        if self.model.training:
            raise ValueError(
                "the model is in training mode, where dropout changes its predictions: call model.eval() first"
            )
        rules = SamplingRules() if rules is None else rules
        num_pixels = self._checked_length(num_pixels)
        prompts = self._checked_prompts(prompts, len(seeds), num_pixels)
        # Made outside inference mode, so that the caller may do with it what he likes, training included.
        images = torch.empty(len(seeds), num_pixels, dtype=torch.int64, device=self.model.device)
        images[:, : prompts.shape[1]] = prompts
        if len(seeds) and prompts.shape[1] < num_pixels:
            with torch.inference_mode():
                self._draw_rest(images, prompts, seeds, rules, on_pixel)
        return images

    def _draw_rest(
        self,
        images: Int64[Tensor, "b t"],
        prompts: Int64[Tensor, "b p"],
        seeds: Sequence[int],
        rules: SamplingRules,
        on_pixel: OnPixel | None,
    ) -> None:
        """Fill in the pixels of `images` after the prompts."""
        num_given, num_pixels = prompts.shape[1], images.shape[1]
        noise = self._noise(seed_tensor(seeds, images.device), range(num_given, num_pixels), rules)
        logits, cache = self._prefill(prompts, num_pixels)
        finite = torch.isfinite(logits).all()
        for pixel in range(num_given, num_pixels):
            drawn = draw(logits, next(noise), rules)
            images[:, pixel] = drawn
            if on_pixel is not None:
                on_pixel(pixel, drawn)
            if pixel + 1 < num_pixels:
                logits = self._step(drawn, cache)
                finite &= torch.isfinite(logits).all()  # looked at once, at the end: looking waits for the device
        if not finite:
            raise ValueError(
                f"the model's logits are not finite in {self.model.dtype}: its weights are damaged, or need float32"
            )

    def _prefill(self, prompts: Int64[Tensor, "b p"], num_pixels: int) -> tuple[Float32[Tensor, "b v"], Cache]:
        """Logits of the pixel after the prompts, and the cache with room for the images."""
        distinct, rows = torch.unique(prompts, dim=0, return_inverse=True) if prompts.shape[1] else _all_alike(prompts)
        sos = distinct.new_full((distinct.shape[0], 1), self.model.config.sos_token_id)
        cache = DynamicCache(config=self.model.config)
        out = self.model(torch.cat([sos, distinct], dim=1), past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits = out.logits[:, -1].float()[rows]
        return logits, continue_prefill(cache, rows, num_pixels)

    def _step(self, drawn: Int64[Tensor, " b"], cache: Cache) -> Float32[Tensor, "b v"]:
        out = self.model(drawn.unsqueeze(1), past_key_values=cache, use_cache=True)
        return out.logits[:, -1].float()

    def _noise(
        self, seeds: Int64[Tensor, " b"], pixels: range, rules: SamplingRules
    ) -> Iterator[Float32[Tensor, "b v"] | None]:
        """The noise of one pixel after the other, computed many pixels at a time."""
        num_colors = self.model.config.num_colors
        chunk = max(1, _NOISE_CHUNK // (len(seeds) * num_colors))
        for start in range(pixels.start, pixels.stop, chunk):
            stop = min(start + chunk, pixels.stop)
            if rules.is_greedy:
                yield from [None] * (stop - start)
                continue
            yield from gumbel_noise(seeds, torch.arange(start, stop), num_colors).unbind(dim=1)

    def _checked_length(self, num_pixels: int | None) -> int:
        limit = self.model.config.n_positions
        if num_pixels is None:
            return limit
        if not 1 <= num_pixels <= limit:
            raise ValueError(f"num_pixels is {num_pixels}: this model draws 1 to {limit} pixels")
        return num_pixels

    def _checked_prompts(
        self, prompts: Int64[Tensor, "b p"] | None, num_images: int, num_pixels: int
    ) -> Int64[Tensor, "b p"]:
        """The prompts on the model's device, or why they cannot be continued."""
        if prompts is None:
            return torch.empty(num_images, 0, dtype=torch.int64, device=self.model.device)
        if prompts.ndim != 2:
            raise ValueError(f"prompts have the shape {tuple(prompts.shape)}: give (images, pixels)")
        if prompts.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8):
            raise ValueError(f"prompts are {prompts.dtype}: give colour ids as whole numbers, int64 for example")
        if prompts.shape[0] != num_images:
            raise ValueError(f"{num_images} seeds were given for {prompts.shape[0]} prompts: give one seed an image")
        if prompts.shape[1] > num_pixels:
            raise ValueError(
                f"the prompts have {prompts.shape[1]} pixels, the images are to have {num_pixels}: shorten the prompts"
            )
        if prompts.numel():
            self._check_colors(int(prompts.min()), int(prompts.max()))
        return prompts.to(self.model.device, torch.int64)

    def _check_colors(self, lowest: int, highest: int) -> None:
        num_colors = self.model.config.num_colors
        if highest == num_colors:
            raise ValueError(
                f"the prompts contain {highest}, the start token: give pixels only, it is put in front here"
            )
        if lowest < 0 or highest > num_colors:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"the prompts contain {wrong}: this model knows colours 0 to {num_colors - 1}")


def _all_alike(prompts: Int64[Tensor, "b p"]) -> tuple[Int64[Tensor, "1 p"], Int64[Tensor, " b"]]:
    return prompts[:1], torch.zeros(prompts.shape[0], dtype=torch.int64, device=prompts.device)
