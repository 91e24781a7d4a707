"""The step on a CPU: embeddings, blocks, final norm and head in one call of `kernels.step`.

Each prompt is prefilled by itself. Images with the same prompt share its keys and values (prefix caching).

Axes: B images, P pixels of a prompt, n positions per step, V colours.
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
from imagegpt.sampling.backends.thread_count import ThreadCountTuner
from imagegpt.sampling.packed_linear import PackedLinear, tile_weight
from imagegpt.sampling.weight_formats import WeightFormat

_PREFILL_CHUNK = 64  # positions per call
_REPLACED_ATTENTION = ("eager", "sdpa", "kernels")  # implementations that compute what the kernel computes
_SUPPORTED_IN_BLOCKS = (
    ImageGPTBlock, ImageGPTAttention, ImageGPTMLP, ImageGPTLayerNorm, PackedLinear, QuickGELU, nn.Dropout
)  # fmt: skip
_SUPPORTED_AROUND_BLOCKS = (ImageGPTModel, nn.ModuleList, nn.Embedding, nn.Linear)


def unsupported_reason(model: ImageGPTForCausalImageModeling, weight_format: WeightFormat | None = None) -> str | None:
    """Why the C++ step does not support a model; None if it does.

    Args:
        model: prepared, or about to be.
        weight_format: that the model will be prepared with; None if it is prepared.
    """
    config, transformer = model.config, model.transformer
    is_prepared = weight_format is None
    if model.device.type != "cpu":
        return f"it is on {model.device}"
    if config._attn_implementation not in _REPLACED_ATTENTION:
        return f"its attention is {config._attn_implementation}"
    if config.n_embd // config.n_head > kernel.MAX_HEAD_WIDTH:
        return f"its heads are wider than {kernel.MAX_HEAD_WIDTH}"
    if not is_prepared and weight_format.kernel_dtype is None:
        return f"there is no kernel for {weight_format.name}"
    supported = (*_SUPPORTED_IN_BLOCKS, *_SUPPORTED_AROUND_BLOCKS, *(() if is_prepared else (Projection,)))
    around_blocks = [transformer, transformer.ln_f, transformer.wte, transformer.wpe, model.lm_head]
    for module in [*transformer.h.modules(), *around_blocks]:
        if type(module) not in supported:
            return f"it has a {type(module).__name__}"
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return f"its {type(module).__name__} has a hook"
        if is_prepared and isinstance(module, PackedLinear) and module.layout != "tiles":
            return "its weights are not tiled"
    if is_prepared and any(p.dtype != torch.float32 for module in around_blocks[1:] for p in module.parameters()):
        return "its embeddings are not in float32"
    return None


class _CachedPrefix:
    """Keys and values of a prompt, which live as long as a row continues it."""

    def __init__(self, buffer: Tensor, length: int) -> None:
        self.buffer, self.length = buffer, length


class CppBackend(StepBackend):
    """See `StepBackend`.

    Args:
        model: prepared, and supported, see `unsupported_reason`.
        num_pixels: per image.
    Raises: OSError or RuntimeError if the kernel cannot be compiled or loaded.
    """

    def __init__(self, model: ImageGPTForCausalImageModeling, capacity: int, num_pixels: int) -> None:
        super().__init__(model.config.num_colors)
        self._num_pixels = num_pixels
        self._keep_alive: list[object] = []  # what the structures point to
        blocks = [block for block in model.transformer.h if isinstance(block, ImageGPTBlock)]
        dtype = _kernel_dtype(blocks[0].attn.c_attn)
        self._model = self._model_struct(model, blocks)
        self._library = kernel.load_step_library(dtype, self._model.head_width)
        self._dtype = (torch.float32, torch.bfloat16, torch.int8)[dtype]
        self._elements_per_position = cache_elements_per_position(model, dtype)
        self._rows: list[tuple[Tensor, _CachedPrefix | None] | None] = [None] * capacity
        self._prefixes: WeakValueDictionary[bytes, _CachedPrefix] = WeakValueDictionary()
        self._last_caches: tuple[tuple[int, ...], ctypes.Array[kernel.CacheStruct]] | None = None  # rows, structures
        self._thread_counts: dict[int, ThreadCountTuner] = {}  # by the number of tokens in a call

    def admit(self, row: int, prompt: Int64[Tensor, " p"]) -> None:
        """See `StepBackend`."""
        tokens = torch.cat([torch.tensor([self.num_colors]), prompt])[: len(prompt)]  # without the last pixel
        length = len(tokens) // kernel.PREFIX_MULTIPLE * kernel.PREFIX_MULTIPLE
        prefix = None
        if length:
            key = tokens[:length].numpy().tobytes()
            prefix = self._prefixes.get(key)
            if prefix is None:
                prefix = _CachedPrefix(self._cache_buffer(length), length)
                self._prefill(tokens[:length], 0, kernel.CacheStruct(prefix.buffer.data_ptr(), length, None, 0))
                self._prefixes[key] = prefix  # only now, because prefilling may fail
        self._rows[row] = self._cache_buffer(self._num_pixels - length), prefix
        self._last_caches = None
        self._prefill(tokens[length:], length, self._cache_struct(row))

    def step(
        self, tokens: Int64[Tensor, "b n"], positions: Int64[Tensor, "b n"], rows: Sequence[int], longest: int
    ) -> Float32[Tensor, "b n v"]:
        """See `StepBackend`."""
        key = tuple(rows)
        if self._last_caches is None or self._last_caches[0] != key:
            structures = [self._cache_struct(row) for row in key]
            self._last_caches = key, (kernel.CacheStruct * len(key))(*structures)
        logits = torch.empty(*tokens.shape, self.num_colors)
        self._call_kernel(tokens, positions, self._last_caches[1], logits)
        return logits

    def release(self, row: int) -> None:
        """See `StepBackend`."""
        self._rows[row] = self._last_caches = None

    def redraft(
        self,
        scores: Float32[Tensor, "b n v"],
        tokens: Int64[Tensor, "b n"],
        positions: Int64[Tensor, "b n"],
        bigrams: Float32[Tensor, "v v"],
    ) -> Int64[Tensor, "b n"]:
        """See `StepBackend`."""
        inputs = [x.contiguous() for x in (scores, tokens, positions, bigrams)]
        pixels = torch.empty_like(inputs[1])
        self._library.redraft(*(x.data_ptr() for x in inputs), *scores.shape, pixels.data_ptr())
        return pixels

    def _prefill(self, tokens: Int64[Tensor, " n"], first: int, cache: kernel.CacheStruct) -> None:
        """Compute keys and values of tokens at consecutive positions from `first` on."""
        caches = (kernel.CacheStruct * 1)(cache)
        for start in range(0, len(tokens), _PREFILL_CHUNK):
            chunk = tokens[start : start + _PREFILL_CHUNK].view(1, -1)
            self._call_kernel(chunk, first + start + torch.arange(chunk.numel()).view(1, -1), caches, None)

    def _call_kernel(
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
        tuner = self._thread_counts.get(tokens.numel())
        if tuner is None:
            tuner = self._thread_counts[tokens.numel()] = ThreadCountTuner(torch.get_num_threads())
        address, num_threads = None if logits is None else logits.data_ptr(), tuner.choose()
        call = kernel.CallStruct(tokens.data_ptr(), positions.data_ptr(), caches, *tokens.shape, address, num_threads)
        started = time.perf_counter()
        self._library.step(self._model, call)
        tuner.observe(num_threads, time.perf_counter() - started)

    def _cache_buffer(self, num_positions: int) -> Tensor:
        return torch.empty(num_positions * self._elements_per_position, dtype=self._dtype)

    def _cache_struct(self, row: int) -> kernel.CacheStruct:
        admitted = self._rows[row]
        assert admitted is not None, f"row {row} was not admitted"
        buffer, prefix = admitted
        capacity = buffer.numel() // self._elements_per_position
        if prefix is None:
            return kernel.CacheStruct(buffer.data_ptr(), capacity, None, 0)
        return kernel.CacheStruct(buffer.data_ptr(), capacity, prefix.buffer.data_ptr(), prefix.length)

    def _model_struct(self, model: ImageGPTForCausalImageModeling, blocks: list[ImageGPTBlock]) -> kernel.ModelStruct:
        config, transformer = model.config, model.transformer
        structures = (kernel.BlockStruct * len(blocks))(*(self._block_struct(block) for block in blocks))
        self._keep_alive.append(structures)
        head_weight = self._address(tile_weight(model.lm_head.weight.detach()))
        head = kernel.LinearStruct(head_weight, None, None, config.n_embd, config.num_colors, kernel.DType.FLOAT32)
        return kernel.ModelStruct(
            config.n_embd,
            config.n_embd // config.n_head,
            len(blocks),
            transformer.wte.weight.shape[0],
            transformer.wpe.weight.shape[0],
            config.layer_norm_epsilon,
            self._address(transformer.wte.weight.detach().contiguous()),
            self._address(transformer.wpe.weight.detach().contiguous()),
            structures,
            self._padded_vector(transformer.ln_f.weight),
            head,
        )

    def _block_struct(self, block: ImageGPTBlock) -> kernel.BlockStruct:
        attention, mlp = block.attn, block.mlp
        linears = [self._linear_struct(module) for module in (attention.c_attn, attention.c_proj, mlp.c_fc, mlp.c_proj)]
        norms = self._padded_vector(block.ln_1.weight), self._padded_vector(block.ln_2.weight)
        return kernel.BlockStruct(*norms, *linears, len(attention.kept_heads), attention.scaling)

    def _linear_struct(self, module: nn.Module) -> kernel.LinearStruct:
        assert isinstance(module, PackedLinear)
        scale, bias = self._padded_vector(module.scale), self._padded_vector(module.bias)
        weight = self._address(module.weight.detach())
        dtype = _kernel_dtype(module)
        return kernel.LinearStruct(weight, scale, bias, module.in_features, module.out_features, dtype)

    def _padded_vector(self, vector: Tensor | None) -> int | None:
        """The address of a float32 copy, padded with zeros to whole tiles."""
        if vector is None:
            return None
        padding = -len(vector) % kernel.TILE
        return self._address(nn.functional.pad(vector.detach().float(), (0, padding)).contiguous())

    def _address(self, tensor: Tensor) -> int:
        self._keep_alive.append(tensor)
        return tensor.data_ptr()


def cache_elements_per_position(model: ImageGPTForCausalImageModeling, dtype: kernel.DType) -> int:
    """Elements of the keys and values of all blocks at one position, as `CppBackend` stores them."""
    width = kernel.padded_head_width(model.config.n_embd // model.config.n_head)
    if dtype == kernel.DType.INT8:
        width += kernel.SCALE_BYTES
    blocks = [block for block in model.transformer.h if isinstance(block, ImageGPTBlock)]
    return 2 * sum(len(block.attn.kept_heads) for block in blocks) * width


def _kernel_dtype(module: nn.Module) -> kernel.DType:
    assert isinstance(module, PackedLinear)
    assert module.format.kernel_dtype is not None
    return module.format.kernel_dtype
