"""The key/value cache of the sampler: room for whole images, allocated once and written in place.

A position is written when its pixel is fed, and seen by the queries of its own and later positions only. So what was
written by a wrong guess, or beyond the end of a shorter prompt, harms nobody: it is written anew before it is seen.

Images that continue the same prompt share its keys and values, which lie in a part of their own:

    position      0 ... P-1 | P ... P+S-1
    kept          G prompts | B images         B / G images continue each prompt, one after the other

Axes: B images, G prompts, n positions fed at once, H heads, P shared positions, S positions of the images' own that are
looked at, R room for such positions, D head width.
"""

from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from imagegpt.kernels.decoding import SCALE_BYTES, quantized
from imagegpt.model.layers import ImageGPTAttention
from imagegpt.model.modeling import ImageGPTForCausalImageModeling

BUCKET = 64  # positions by which the part that attention reads grows


class StaticCache:
    """Keys and values of all blocks.

    Args:
        model: whose shapes count.
        num_images: B.
        dtype: of the keys and values stored; torch.int8 is for `kernels`, with a scale behind each vector.
        num_shared: P.
        num_positions: of whole images, shared ones included.

    Attributes:
        slots: (R,) the positions that the images' own part has room for.
        shared: keys and values of the prompts, (G, H, P, D), of each block; none before `share` is called.
    """

    def __init__(
        self,
        model: ImageGPTForCausalImageModeling,
        num_images: int,
        dtype: torch.dtype,
        num_shared: int = 0,
        num_positions: int | None = None,
    ) -> None:
        num_positions = model.config.n_positions if num_positions is None else num_positions
        self.num_shared = num_shared
        self.slots: Int64[Tensor, " r"] = torch.arange(
            num_shared, num_shared + -(-(num_positions - num_shared) // BUCKET) * BUCKET, device=model.device
        )
        self.shared: list[tuple[Shaped[Tensor, "g h p d"], Shaped[Tensor, "g h p d"]]] = []
        self.keys: list[Shaped[Tensor, "b h r d"]] = []
        self.values: list[Shaped[Tensor, "b h r d"]] = []
        self._dtype = dtype
        for module in model.modules():
            if isinstance(module, ImageGPTAttention):
                width = module.head_dim + (SCALE_BYTES if dtype == torch.int8 else 0)
                shape = (num_images, len(module.kept_heads), len(self.slots), width)
                # Zeros, not whatever was there: a masked position counts nothing, unless it is not a number.
                self.keys.append(torch.zeros(shape, dtype=dtype, device=model.device))
                self.values.append(torch.zeros(shape, dtype=dtype, device=model.device))

    def fill(self, prefilled: DynamicCache, images: Int64[Tensor, " b2"], rows: Int64[Tensor, " b2"]) -> None:
        """Copy what a prompt left to the images that continue it.

        Args:
            prefilled: keys and values of the first positions of some prompts.
            images: which images continue them.
            rows: for each of these, its prompt as a row of `prefilled`.
        """
        for layer, keys, values in zip(prefilled.layers, self.keys, self.values, strict=True):
            for stored, new in zip((keys, values), _keys_and_values(layer), strict=True):
                stored[images, :, : new.shape[2]] = _as_stored(new[rows], stored.dtype)

    def share(self, prefilled: list[DynamicCache]) -> None:
        """Keep what the prompts left for all images that continue them.

        Args:
            prefilled: keys and values of the P first positions, of some prompts each.
        """
        for layers in zip(*(cache.layers for cache in prefilled), strict=True):
            keys, values = zip(*map(_keys_and_values, layers), strict=True)
            kept = _as_stored(torch.cat(keys), self._dtype), _as_stored(torch.cat(values), self._dtype)
            self.shared.append(kept)

    def rounded(self, length: int) -> int:
        """How many of the images' own positions to look at to see all before position `length`: whole buckets."""
        return -(-(length - self.num_shared) // BUCKET) * BUCKET

    @property
    def nbytes(self) -> int:
        """Size of keys and values, in bytes."""
        shared = (tensor for pair in self.shared for tensor in pair)
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values, *shared))


class Shared(NamedTuple):
    """Keys and values of prompts, of one block."""

    keys: Float[Tensor, "g h p d"]
    values: Float[Tensor, "g h p d"]


class BlockCache:
    """The cache as one block sees it while it runs: writes what is new where it belongs, gives what is looked at.

    Args:
        keys: of the block, written to.
        values: likewise.
        positions: where the positions fed now go.
        slots: the first S positions of the images' own.
    """

    def __init__(
        self,
        keys: Float[Tensor, "b h r d"],
        values: Float[Tensor, "b h r d"],
        positions: Int64[Tensor, "b n"],
        slots: Int64[Tensor, " s"],
    ) -> None:
        self._keys, self._values, self._num_seen = keys, values, slots.shape[0]
        self._places = positions - slots[0]

    def update(
        self, key_states: Float[Tensor, "b h n d"], value_states: Float[Tensor, "b h n d"], layer_idx: int
    ) -> tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s d"]]:
        """What transformers' caches do, for this block only."""
        for stored, new in ((self._keys, key_states), (self._values, value_states)):
            if new.shape[0] == 1:
                stored.index_copy_(2, self._places[0], _as_stored(new, stored.dtype))
            else:
                images = torch.arange(new.shape[0], device=new.device).unsqueeze(1)
                stored[images, :, self._places] = _as_stored(new, stored.dtype).transpose(1, 2)
        return self._keys[:, :, : self._num_seen], self._values[:, :, : self._num_seen]


def _as_stored(new: Float[Tensor, "b h n d"], dtype: torch.dtype) -> Shaped[Tensor, "b h n d2"]:
    return quantized(new.float()) if dtype == torch.int8 else new.to(dtype)


def _keys_and_values(layer: object) -> tuple[Float[Tensor, "g h p d"], Float[Tensor, "g h p d"]]:
    keys, values = cast(DynamicLayer, layer).keys, cast(DynamicLayer, layer).values
    assert keys is not None
    assert values is not None
    return keys, values
