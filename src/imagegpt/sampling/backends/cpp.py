"""The step on a CPU: all blocks, the last norm and the head in one call of `kernels.step`.

Prompts are read alone, and the images that continue the same one share its keys and values.

Axes: B images, P pixels of a prompt, n positions fed at once, V colours, C channels.
"""

import ctypes
import time
from collections.abc import Sequence
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from imagegpt.kernels import step as kernel
from imagegpt.model.base import ImageGPTModel
from imagegpt.model.layers import (
    ImageGPTAttention,
    ImageGPTBlock,
    ImageGPTLayerNorm,
    ImageGPTMLP,
    Projection,
    QuickGELU,
)
from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.sampling.backends.base import StepBackend
from imagegpt.sampling.backends.thread_count import ThreadCount
from imagegpt.sampling.packed_linear import PackedLinear, kind_of, tiled
from imagegpt.sampling.weight_formats import WeightFormat

_READ_AT_ONCE = 64  # positions of a prompt
_BACKENDS_OF_ATTENTION = ("eager", "sdpa", "kernels")  # which all compute the same
_KNOWN = (ImageGPTBlock, ImageGPTAttention, ImageGPTMLP, ImageGPTLayerNorm, PackedLinear, QuickGELU, nn.Dropout)
_AROUND = (ImageGPTModel, nn.ModuleList, nn.Embedding, nn.Linear)


def reason_against(model: ImageGPTForCausalImageModeling, weight_format: WeightFormat | None = None) -> str | None:
    """Why the C++ step cannot compute a model, if it cannot.

    Args:
        model: prepared, or about to be.
        weight_format: in which its weights will be stored; None if it is prepared.
    """
    config, transformer = model.config, model.transformer
    if model.device.type != "cpu":
        return f"it is on {model.device}"
    if config._attn_implementation not in _BACKENDS_OF_ATTENTION:
        return f"its attention is {config._attn_implementation}"
    if config.n_embd // config.n_head > kernel.WIDEST_HEAD:
        return f"its heads are wider than {kernel.WIDEST_HEAD}"
    if weight_format is not None and weight_format.kind is None:
        return f"there is no product for {weight_format.name}"
    known = _KNOWN if weight_format is None else (*_KNOWN, Projection)
    others = [transformer, transformer.ln_f, transformer.wte, transformer.wpe, model.lm_head]
    for part in [*transformer.h.modules(), *others]:
        if type(part) not in (*known, *_AROUND):
            return f"it has a {type(part).__name__}"
        if part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part):
            return f"a hook is on its {type(part).__name__}"
        if weight_format is None and isinstance(part, PackedLinear) and part.layout != "tiles":
            return "its weights are in rows"
    if weight_format is None and any(p.dtype != torch.float32 for o in others[1:] for p in o.parameters()):
        return "its embeddings are not in float32"
    return None


class _Prefix:
    """Keys and values of a prompt, as long as some row continues it."""

    def __init__(self, buffer: Tensor, length: int) -> None:
        self.buffer, self.length = buffer, length


class CppStep(StepBackend):
    """See `StepBackend`.

    Args:
        model: prepared, and one that `reason_against` has nothing against.
        capacity: most rows.
        num_pixels: of whole images.
    Raises: OSError or RuntimeError if there is no compiled step and none can be made.
    """

    def __init__(self, model: ImageGPTForCausalImageModeling, capacity: int, num_pixels: int) -> None:
        super().__init__(model.config.num_colors)
        self._num_pixels = num_pixels
        self._kept: list[object] = []  # what the structures point to
        self._model, kind = self._structure_of(model)
        self._library = kernel.loaded_step(kind, self._model.head_width)
        self._dtype = (torch.float32, torch.bfloat16, torch.int8)[kind]
        self._numbers_per_position = numbers_per_position(model, kind)
        self._rows: list[tuple[Tensor, _Prefix | None] | None] = [None] * capacity
        self._prefixes: WeakValueDictionary[bytes, _Prefix] = WeakValueDictionary()
        self._caches: tuple[tuple[int, ...], ctypes.Array[kernel.CacheStruct]] | None = None  # of the last rows
        self._thread_counts: dict[int, ThreadCount] = {}  # by the number of tokens in a call

    def admit(self, row: int, prompt: Int64[Tensor, " p"]) -> None:
        """See `StepBackend`."""
        tokens = torch.cat([torch.tensor([self.num_colors]), prompt])[: len(prompt)]  # the last pixel is for `step`
        length = len(tokens) // kernel.PREFIX_MULTIPLE * kernel.PREFIX_MULTIPLE
        prefix = None
        if length:
            key = tokens[:length].numpy().tobytes()
            prefix = self._prefixes.get(key)
            if prefix is None:
                prefix = _Prefix(self._buffer(length), length)
                self._read(tokens[:length], 0, kernel.CacheStruct(prefix.buffer.data_ptr(), length, None, 0))
                self._prefixes[key] = prefix  # not before it is read: reading may fail
        self._rows[row] = self._buffer(self._num_pixels - length), prefix
        self._caches = None
        self._read(tokens[length:], length, self._cache_of(row))

    def step(
        self, tokens: Int64[Tensor, "b n"], positions: Int64[Tensor, "b n"], rows: Sequence[int], longest: int
    ) -> Float32[Tensor, "b n v"]:
        """See `StepBackend`."""
        chosen = tuple(rows)
        if self._caches is None or self._caches[0] != chosen:
            structures = [self._cache_of(row) for row in chosen]
            self._caches = chosen, (kernel.CacheStruct * len(chosen))(*structures)
        logits = torch.empty(*tokens.shape, self.num_colors)
        self._call(tokens, positions, self._caches[1], logits)
        return logits

    def release(self, row: int) -> None:
        """See `StepBackend`."""
        self._rows[row] = self._caches = None

    @property
    def cache_bytes(self) -> int:
        """See `StepBackend`."""
        rows = [row for row in self._rows if row is not None]
        prefixes = {id(prefix): prefix.buffer.nbytes for _, prefix in rows if prefix is not None}
        return sum(own.nbytes for own, _ in rows) + sum(prefixes.values())

    def redraw(
        self,
        scores: Float32[Tensor, "b n v"],
        fed: Int64[Tensor, "b n"],
        positions: Int64[Tensor, "b n"],
        influence: Float32[Tensor, "v v"],
    ) -> Int64[Tensor, "b n"]:
        """See `StepBackend`."""
        given = [x.contiguous() for x in (scores, fed, positions, influence)]
        drawn = torch.empty_like(given[1])
        self._library.redraw(*(x.data_ptr() for x in given), *scores.shape, drawn.data_ptr())
        return drawn

    def _read(self, tokens: Int64[Tensor, " n"], first: int, cache: kernel.CacheStruct) -> None:
        """Cache keys and values of tokens at the positions from `first` on."""
        caches = (kernel.CacheStruct * 1)(cache)
        for start in range(0, len(tokens), _READ_AT_ONCE):
            some = tokens[start : start + _READ_AT_ONCE].view(1, -1)
            self._call(some, first + start + torch.arange(some.numel()).view(1, -1), caches, None)

    def _call(
        self,
        tokens: Tensor,
        positions: Tensor,
        caches: ctypes.Array[kernel.CacheStruct],
        logits: Tensor | None,
    ) -> None:
        tokens, positions = tokens.contiguous(), positions.contiguous()
        assert tokens.dtype == positions.dtype == torch.int64
        assert tokens.shape == positions.shape
        assert len(tokens) == len(caches)
        threads = self._thread_counts.get(tokens.numel())
        if threads is None:
            threads = self._thread_counts[tokens.numel()] = ThreadCount(torch.get_num_threads())
        address, num_threads = None if logits is None else logits.data_ptr(), threads.choose()
        call = kernel.CallStruct(tokens.data_ptr(), positions.data_ptr(), caches, *tokens.shape, address, num_threads)
        started = time.perf_counter()
        self._library.step(self._model, call)
        threads.observe(num_threads, time.perf_counter() - started)

    def _buffer(self, num_positions: int) -> Tensor:
        return torch.empty(num_positions * self._numbers_per_position, dtype=self._dtype)

    def _cache_of(self, row: int) -> kernel.CacheStruct:
        admitted = self._rows[row]
        assert admitted is not None, f"row {row} was not admitted"
        own, prefix = admitted
        room = own.numel() // self._numbers_per_position
        if prefix is None:
            return kernel.CacheStruct(own.data_ptr(), room, None, 0)
        return kernel.CacheStruct(own.data_ptr(), room, prefix.buffer.data_ptr(), prefix.length)

    def _structure_of(self, model: ImageGPTForCausalImageModeling) -> tuple[kernel.ModelStruct, kernel.Kind]:
        config, transformer = model.config, model.transformer
        blocks = [block for block in transformer.h if isinstance(block, ImageGPTBlock)]
        structures = (kernel.BlockStruct * len(blocks))(*(self._block(block) for block in blocks))
        self._kept.append(structures)
        head = tiled(model.lm_head.weight.detach())
        out_of = kernel.LinearStruct(
            self._address(head), None, None, config.n_embd, config.num_colors, kernel.Kind.FLOAT32
        )
        structure = kernel.ModelStruct(
            config.n_embd,
            config.n_embd // config.n_head,
            len(blocks),
            transformer.wte.weight.shape[0],
            transformer.wpe.weight.shape[0],
            config.layer_norm_epsilon,
            self._address(transformer.wte.weight.detach().contiguous()),
            self._address(transformer.wpe.weight.detach().contiguous()),
            structures,
            self._padded(transformer.ln_f.weight),
            out_of,
        )
        return structure, _kind(blocks[0])

    def _block(self, block: ImageGPTBlock) -> kernel.BlockStruct:
        attention, mlp = block.attn, block.mlp
        linears = [self._linear(part) for part in (attention.c_attn, attention.c_proj, mlp.c_fc, mlp.c_proj)]
        norms = self._padded(block.ln_1.weight), self._padded(block.ln_2.weight)
        return kernel.BlockStruct(*norms, *linears, len(attention.kept_heads), attention.scaling)

    def _linear(self, part: nn.Module) -> kernel.LinearStruct:
        assert isinstance(part, PackedLinear)
        scale, bias = self._padded(part.scale), self._padded(part.bias)
        weight = self._address(part.weight.detach())
        return kernel.LinearStruct(weight, scale, bias, part.in_features, part.out_features, kind_of(part))

    def _padded(self, vector: Tensor | None) -> int | None:
        """The address of a vector in float32, filled with zeros to whole tiles."""
        if vector is None:
            return None
        missing = -len(vector) % kernel.TILE
        return self._address(nn.functional.pad(vector.detach().float(), (0, missing)).contiguous())

    def _address(self, tensor: Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()


def numbers_per_position(model: ImageGPTForCausalImageModeling, kind: kernel.Kind) -> int:
    """Of keys and values of all blocks, as `CppStep` stores them."""
    width = kernel.padded_head_width(model.config.n_embd // model.config.n_head)
    if kind == kernel.Kind.INT8:
        width += kernel.SCALE_BYTES
    blocks = [block for block in model.transformer.h if isinstance(block, ImageGPTBlock)]
    return 2 * sum(len(block.attn.kept_heads) for block in blocks) * width


def _kind(block: ImageGPTBlock) -> kernel.Kind:
    assert isinstance(block.attn.c_attn, PackedLinear)
    return kind_of(block.attn.c_attn)
