"""A model ready to be fed pixels: frozen projections, a static cache, the blocks compiled or not.

The block is `ImageGPTBlock` itself, run through `torch.func.functional_call`: one compiled graph takes the weights of
whichever block it is to be as arguments, so that all blocks share it.

Axes: B images, G prompts, n positions fed at once, S positions of the cache that are looked at, R room in it, H heads,
D head width, C channels, V colours.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn
from torch.nn import functional

from imagegpt.kernels import decoding as kernels
from imagegpt.model.layers import ImageGPTBlock, at_least_float32
from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.sampling.cache import BlockCache, Shared, StaticCache
from imagegpt.sampling.compilation import Compiler, Runner, varying
from imagegpt.sampling.projections import lay_out


def decoding_attention(
    module: nn.Module,
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b h s d"],
    value: Float[Tensor, "b h s d"],
    attention_mask: Bool[Tensor, "b 1 n s"],
    scaling: float,
    scale: Float32[Tensor, ""],
    lengths: Int64[Tensor, "b n"] | None = None,
    shared: Shared | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "b n h d"], None]:
    """Attention of few queries over a static cache, in float32 at least, whatever the cache stores.

    On a CPU our kernel does it, given `lengths`. Otherwise, one query is a product and a sum each way, which compiles
    to loops that read the cache once; a library's kernel for it would convert and copy the cache first. `scale` is
    `scaling` as a tensor, so that blocks which differ in nothing else share a graph.
    """
    dtype, compiling = at_least_float32(query.dtype), torch.compiler.is_compiling()
    if lengths is not None and dtype == torch.float32 and kernels.can_attend(query.shape[3], key.dtype, query.device):
        past = (None, None) if shared is None else shared
        return kernels.cached_attention(query.to(dtype) * scale, key, value, lengths, *past).to(query.dtype), None
    if shared is None and not compiling and key.dtype == query.dtype == dtype:
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
        return mixed.transpose(1, 2), None
    single = compiling and query.shape[2] == 1
    scaled, key, value = query.to(dtype) * scale, key.to(dtype), value.to(dtype)
    scores = (scaled * key).sum(-1).unsqueeze(2) if single else scaled @ key.transpose(-1, -2)
    scores = scores.masked_fill(~attention_mask, torch.finfo(dtype).min)
    if shared is not None:  # seen by all
        scores = torch.cat([scores, _with_shared(scaled, shared.keys.to(dtype).transpose(-1, -2))], dim=-1)
    weights = scores.softmax(dim=-1)
    own, length = weights[..., : key.shape[2]], key.shape[2]
    mixed = (own.transpose(2, 3) * value).sum(2, keepdim=True) if single else own @ value
    if shared is not None:
        mixed = mixed + _with_shared(weights[..., length:], shared.values.to(dtype))
    return mixed.transpose(1, 2).to(query.dtype), None


def _with_shared(left: Float[Tensor, "b h n i"], right: Float[Tensor, "g h i j"]) -> Float[Tensor, "b h n j"]:
    """Matrix products of all images with what their prompt has: the images of a prompt are rows of one product."""
    num_prompts, num_positions = right.shape[0], left.shape[2]
    grouped = left.unflatten(0, (num_prompts, -1)).transpose(1, 2).flatten(2, 3) @ right
    return grouped.unflatten(2, (left.shape[0] // num_prompts, num_positions)).transpose(1, 2).flatten(0, 1)


class BlockStep(nn.Module):
    """One block as a function of tensors alone.

    Args:
        block: the block, whose weights do not matter.
        is_shared: whether the images continue prompts that share a part of the cache.
        with_kernels: whether `kernels` may be called.
    """

    def __init__(self, block: ImageGPTBlock, is_shared: bool, with_kernels: bool) -> None:
        super().__init__()
        self._with_kernels = with_kernels
        self._block = [block]  # hidden in a list: not a submodule, its weights come as arguments
        self._num_shared = 2 if is_shared else 0
        self.names = [name for name, _ in block_tensors(block)]

    def forward(
        self,
        hidden: Float[Tensor, "b n c"],
        keys: Float[Tensor, "b h r d"],
        values: Float[Tensor, "b h r d"],
        positions: Int64[Tensor, "b n"],
        slots: Int64[Tensor, " s"],
        *tensors: Tensor,
    ) -> Float[Tensor, "b n c"]:
        """Carry the stream through the block, writing the cache.

        Args:
            hidden: the stream.
            keys: of the block; written to.
            values: likewise.
            positions: of what is fed, of each image.
            slots: the positions that `keys` holds from its beginning, as far as they are to be looked at.
            tensors: keys and values of the prompts, if shared; the factor on the attention scores, (); the weights of
                the block, in the order of `names`.
        """
        shared = Shared(*tensors[: self._num_shared]) if self._num_shared else None
        scale, *weights = tensors[self._num_shared :]
        seen = Seen.of(positions, slots, self._with_kernels)
        options = block_options(keys, values, positions, slots, seen, scale, shared)
        named = dict(zip(self.names, weights, strict=True))
        return torch.func.functional_call(self._block[0], named, (hidden,), options)


class Seen(NamedTuple):
    """Which positions of the cache a query sees: its own and those before.

    Attributes:
        mask: of all that are looked at.
        lengths: how many they are, if `kernels` may be called.
    """

    mask: Bool[Tensor, "b 1 n s"]
    lengths: Int64[Tensor, "b n"] | None

    @classmethod
    def of(cls, positions: Int64[Tensor, "b n"], slots: Int64[Tensor, " s"], with_kernels: bool) -> "Seen":
        """What queries at these positions see of the slots."""
        lengths = positions - slots[0] + 1 if with_kernels else None
        return cls((slots <= positions.unsqueeze(-1)).unsqueeze(1), lengths)


def block_options(
    keys: Tensor, values: Tensor, positions: Tensor, slots: Tensor, seen: Seen, scale: Tensor, shared: Shared | None
) -> dict[str, Any]:
    """How a block is to run: with this cache, seeing these positions."""
    return {
        "past_key_values": BlockCache(keys, values, positions, slots),
        "attention_mask": seen.mask,
        "attn_implementation": decoding_attention,
        "scale": scale,
        "lengths": seen.lengths,
        "shared": shared,
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


def lay_out_for(model: ImageGPTForCausalImageModeling, compiler: Compiler | None) -> bool:
    """Bring the weights into the kernels' layout where blocks will call kernels; whether they will."""
    if compiler is None or not compiler.has_kernels(model.device):
        return False
    lay_out(model, "tiles")
    return True


class Decoder:
    """Feeds pixels to a model and gives the logits of those that come after.

    Args:
        model: frozen, see `projections.freeze`.
        cache: for the images to be fed; with what their prompts share, if anything, already in it.
        compiler: compiles the blocks; None runs them as they are.

    Attributes:
        cache: likewise.
        with_kernels: whether `kernels` may be called.
    """

    def __init__(self, model: ImageGPTForCausalImageModeling, cache: StaticCache, compiler: Compiler | None) -> None:
        self.cache = cache
        self._model, self._compiler = model, compiler
        self.with_kernels = lay_out_for(model, compiler)
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
            length: how many of the images' own positions are looked at, from `cache.rounded`.
        """
        wte, wpe = self._embeddings
        hidden, slots = wte(tokens) + wpe(positions), self.cache.slots[:length]
        runners = self._runners.get(tokens.shape[1] == 1) or self._compile(hidden, positions, slots)
        seen = None if None not in runners else Seen.of(positions, slots, self.with_kernels)
        for index, (block, run) in enumerate(zip(self._blocks, runners, strict=True)):
            if run is not None:
                hidden = run(self._arguments(index, hidden, positions, slots))
                continue
            assert seen is not None
            shared = Shared(*self.cache.shared[index]) if self.cache.shared else None
            keys, values, scale = self.cache.keys[index], self.cache.values[index], self._constants[index][0]
            hidden = block(hidden, **block_options(keys, values, positions, slots, seen, scale, shared))
        return self._head(hidden)

    def _arguments(self, index: int, hidden: Tensor, positions: Tensor, slots: Tensor) -> list[Tensor]:
        """What `BlockStep` takes."""
        shared = self.cache.shared[index] if self.cache.shared else ()
        keys, values = self.cache.keys[index], self.cache.values[index]
        return [hidden, keys, values, positions, slots, *shared, *self._constants[index]]

    def _compile(
        self, hidden: Float[Tensor, "b n c"], positions: Int64[Tensor, "b n"], slots: Int64[Tensor, " s"]
    ) -> list[Runner | None]:
        """A compiled function for each block, or None for those that run as they are."""
        runners: list[Runner | None] = []
        is_shared = bool(self.cache.shared)
        num_images, num_positions = positions.shape
        varies = varying(num_images, num_positions, is_shared)
        for index, block in enumerate(self._blocks):
            run = None
            if self._compiler is not None and _is_plain(block):
                step = BlockStep(block, is_shared, self.with_kernels)
                kind = f"{_kind(block)}, shared: {is_shared}, kernels: {self.with_kernels}"
                run = self._compiler.runner(step, kind, self._arguments(index, hidden, positions, slots), varies)
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
