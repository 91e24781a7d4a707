"""The key/value cache of the sampler: room for whole images, allocated once and written in place.

A position is written when its pixel is fed, and seen by the queries of its own and later positions only. So what was
written by a wrong guess, or beyond the end of a shorter prompt, harms nobody: it is written anew before it is seen.

Axes: B images, n positions fed at once, H heads, S positions there is room for, D head width.
"""

from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from imagegpt.model.layers import ImageGPTAttention
from imagegpt.model.modeling import ImageGPTForCausalImageModeling

BUCKET = 64  # positions by which the part that attention reads grows


class StaticCache:
    """Keys and values of all blocks.

    Args:
        model: whose shapes count.
        num_images: B.
        dtype: of the keys and values stored.
    """

    def __init__(self, model: ImageGPTForCausalImageModeling, num_images: int, dtype: torch.dtype) -> None:
        self.capacity = model.config.n_positions
        self.keys: list[Float[Tensor, "b h s d"]] = []
        self.values: list[Float[Tensor, "b h s d"]] = []
        for module in model.modules():
            if isinstance(module, ImageGPTAttention):
                shape = (num_images, len(module.kept_heads), self.capacity, module.head_dim)
                # Zeros, not whatever was there: a masked position counts nothing, unless it is not a number.
                self.keys.append(torch.zeros(shape, dtype=dtype, device=model.device))
                self.values.append(torch.zeros(shape, dtype=dtype, device=model.device))

    def fill(self, prefilled: DynamicCache, images: Int64[Tensor, " b2"], rows: Int64[Tensor, " b2"]) -> None:
        """Take over what a prompt left.

        Args:
            prefilled: keys and values of the first positions of some prompts.
            images: which images continue them; each row of `images` takes that row of `rows`.
            rows: the prompt, as a row of `prefilled`, that each of them continues.
        """
        for layer, keys, values in zip(prefilled.layers, self.keys, self.values, strict=True):
            for stored, new in ((keys, cast(DynamicLayer, layer).keys), (values, cast(DynamicLayer, layer).values)):
                assert new is not None
                stored[images, :, : new.shape[2]] = new[rows].to(stored.dtype)

    def rounded(self, length: int) -> int:
        """A length rounded up to whole buckets, as far as there is room."""
        return min(-(-length // BUCKET) * BUCKET, self.capacity)

    def seen(self, block: int, length: int) -> tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s d"]]:
        """Keys and values of a block at the first `length` positions; views."""
        return self.keys[block][:, :, :length], self.values[block][:, :, :length]

    @property
    def nbytes(self) -> int:
        """Size of keys and values, in bytes."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))


class BlockCache:
    """The cache as one block sees it while it runs: writes what is new where it belongs, gives all there is.

    Args:
        keys: of the block, written to.
        values: likewise.
        positions: where the positions fed now go.
    """

    def __init__(
        self, keys: Float[Tensor, "b h s d"], values: Float[Tensor, "b h s d"], positions: Int64[Tensor, "b n"]
    ) -> None:
        self._keys, self._values, self._positions = keys, values, positions

    def update(
        self, key_states: Float[Tensor, "b h n d"], value_states: Float[Tensor, "b h n d"], layer_idx: int
    ) -> tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s d"]]:
        """What transformers' caches do, for this block only."""
        if key_states.shape[0] == 1:
            for stored, new in ((self._keys, key_states), (self._values, value_states)):
                stored.index_copy_(2, self._positions[0], new.to(stored.dtype))
            return self._keys, self._values
        images = torch.arange(key_states.shape[0], device=key_states.device).unsqueeze(1)
        for stored, new in ((self._keys, key_states), (self._values, value_states)):
            stored[images, :, self._positions] = new.transpose(1, 2).to(stored.dtype)
        return self._keys, self._values
