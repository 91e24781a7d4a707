"""A model ready to be fed pixels: frozen projections, a static cache, the blocks compiled or not.

The block is `ImageGPTBlock` itself, run through `torch.func.functional_call`: one compiled graph takes the weights of
whichever block it is to be as arguments, so that all blocks share it.

Axes: B images, n positions fed at once, S positions of the cache that are looked at, H heads, D head width, C channels,
V colours.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn
from torch.nn import functional

from imagegpt.model.layers import ImageGPTBlock, at_least_float32
from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.sampling.cache import BUCKET, BlockCache, StaticCache
from imagegpt.sampling.compilation import Compiler, Runner, varying


def decoding_attention(
    module: nn.Module,
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b h s d"],
    value: Float[Tensor, "b h s d"],
    attention_mask: Bool[Tensor, "b 1 n s"],
    scaling: float,
    scale: Float32[Tensor, ""],
    **kwargs: Any,
) -> tuple[Float[Tensor, "b n h d"], None]:
    """Attention of few queries over a static cache, in float32 at least, whatever the cache stores.

    One query is a product and a sum each way, which compiles to loops that read the cache once; a library's kernel for
    it would convert and copy the cache first. `scale` is `scaling` as a tensor, so that blocks which differ in nothing
    else share a graph.
    """
    dtype, compiling = at_least_float32(query.dtype), torch.compiler.is_compiling()
    if not compiling and key.dtype == query.dtype == dtype:
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
        return mixed.transpose(1, 2), None
    single = compiling and query.shape[2] == 1
    scaled, key, value = query.to(dtype) * scale, key.to(dtype), value.to(dtype)
    scores = (scaled * key).sum(-1).unsqueeze(2) if single else scaled @ key.transpose(-1, -2)
    weights = scores.masked_fill(~attention_mask, torch.finfo(dtype).min).softmax(dim=-1)
    mixed = (weights.transpose(2, 3) * value).sum(2, keepdim=True) if single else weights @ value
    return mixed.transpose(1, 2).to(query.dtype), None


class BlockStep(nn.Module):
    """One block as a function of tensors alone."""

    def __init__(self, block: ImageGPTBlock) -> None:
        super().__init__()
        self._block = [block]  # hidden in a list: not a submodule, its weights come as arguments
        self.names = [name for name, _ in block_tensors(block)]

    def forward(
        self,
        hidden: Float[Tensor, "b n c"],
        keys: Float[Tensor, "b h s d"],
        values: Float[Tensor, "b h s d"],
        positions: Int64[Tensor, "b n"],
        scale: Float32[Tensor, ""],
        *tensors: Tensor,
    ) -> Float[Tensor, "b n c"]:
        """Carry the stream through the block, writing the cache.

        Args:
            hidden: the stream.
            keys: those of the block, from position 0 to beyond the last of `positions`; written to.
            values: likewise.
            positions: of what is fed, of each image.
            scale: factor on the attention scores.
            tensors: the weights of the block, in the order of `names`.
        """
        weights = dict(zip(self.names, tensors, strict=True))
        options = _options(keys, values, positions, seen_positions(positions, keys.shape[2]), scale)
        return torch.func.functional_call(self._block[0], weights, (hidden,), options)


def seen_positions(positions: Int64[Tensor, "b n"], length: int) -> Bool[Tensor, "b 1 n s"]:
    """Which positions of the cache a query sees: its own and those before."""
    return (torch.arange(length, device=positions.device) <= positions.unsqueeze(-1)).unsqueeze(1)


def _options(keys: Tensor, values: Tensor, positions: Tensor, seen: Tensor, scale: Tensor) -> dict[str, Any]:
    """How a block is to run: with this cache, seeing these positions."""
    return {
        "past_key_values": BlockCache(keys, values, positions),
        "attention_mask": seen,
        "attn_implementation": decoding_attention,
        "scale": scale,
    }


def block_tensors(block: nn.Module) -> list[tuple[str, Tensor]]:
    """Names and tensors that a block computes with."""
    return [(name, tensor.detach()) for name, tensor in (*block.named_parameters(), *block.named_buffers())]


class Head(nn.Module):
    """The last norm and the output matrix: from the stream to logits in float32."""

    def __init__(self, model: ImageGPTForCausalImageModeling) -> None:
        super().__init__()
        self.ln_f, self.lm_head = model.transformer.ln_f, model.lm_head

    def forward(self, hidden: Float[Tensor, "b n c"]) -> Float32[Tensor, "b n v"]:
        """Compute the logits."""
        return self.lm_head(self.ln_f(hidden)).float()


class Decoder:
    """Feeds pixels to a model and gives the logits of those that come after.

    Args:
        model: frozen, see `projections.freeze`.
        num_images: B.
        cache_dtype: of keys and values.
        compiler: compiles the blocks; None runs them as they are.
    """

    def __init__(
        self,
        model: ImageGPTForCausalImageModeling,
        num_images: int,
        cache_dtype: torch.dtype,
        compiler: Compiler | None,
    ) -> None:
        self.cache = StaticCache(model, num_images, cache_dtype)
        self._compiler = compiler
        self._model = model
        self._embeddings = model.transformer.wte, model.transformer.wpe
        self._head = Head(model)
        self._blocks = [block for block in model.transformer.h if isinstance(block, ImageGPTBlock)]
        self._constants = [[_scale(block), *(tensor for _, tensor in block_tensors(block))] for block in self._blocks]
        self._runners: dict[bool, list[Runner | None]] = {}  # for one position, for several

    def feed(
        self, tokens: Int64[Tensor, "b n"], positions: Int64[Tensor, "b n"], length: int
    ) -> Float32[Tensor, "b n v"]:
        """Feed tokens and get the logits of the pixels at their positions.

        Args:
            tokens: what stands at `positions`: the start token at 0, pixel p - 1 at p.
            positions: of each image; what is cached at earlier positions is seen, at later ones not.
            length: more than the last of `positions`, and one that `cache.rounded` gives; the cache is looked at up to
                there.
        """
        wte, wpe = self._embeddings
        hidden = wte(tokens) + wpe(positions)
        runners = self._runners.get(tokens.shape[1] == 1) or self._compile(hidden, positions, length)
        seen = None
        for index, (block, run) in enumerate(zip(self._blocks, runners, strict=True)):
            keys, values = self.cache.seen(index, length)
            if run is not None:
                hidden = run([hidden, keys, values, positions, *self._constants[index]])
            else:
                seen = seen_positions(positions, keys.shape[2]) if seen is None else seen
                hidden = block(hidden, **_options(keys, values, positions, seen, self._constants[index][0]))
        return self._head(hidden)

    def _compile(
        self, hidden: Float[Tensor, "b n c"], positions: Int64[Tensor, "b n"], length: int
    ) -> list[Runner | None]:
        """A compiled function for each block, or None for those that run as they are."""
        runners: list[Runner | None] = []
        varies = varying(*positions.shape, length_varies=self.cache.capacity > BUCKET)
        for index, block in enumerate(self._blocks):
            run = None
            if self._compiler is not None and _is_plain(block):
                arguments = [hidden, *self.cache.seen(index, length), positions, *self._constants[index]]
                run = self._compiler.runner(BlockStep(block), _kind(block), arguments, varies)
            runners.append(run)
        self._runners[positions.shape[1] == 1] = runners
        return runners


def _scale(block: ImageGPTBlock) -> Tensor:
    return torch.tensor(block.attn.scaling, dtype=torch.float32, device=block.ln_1.weight.device)


def _is_plain(block: ImageGPTBlock) -> bool:
    """Whether a block is made of what `_kind` knows about, and so may share its graph with others of the kind."""
    known = ("imagegpt.", "torch.nn.", "transformers.activations")
    return all(
        type(part).__module__.startswith(known) and not part._forward_hooks and not part._forward_pre_hooks
        for part in block.modules()
    )


def _kind(block: ImageGPTBlock) -> str:
    """What a block computes, apart from its tensors and the factor on its scores."""
    return f"{block!r} of heads {block.attn.head_dim} wide"
