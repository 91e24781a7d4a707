"""The execution plan: precision, backend, decoder and batch size of a model, decided once."""

import functools
import os
import warnings
from dataclasses import dataclass, field
from typing import Literal, Self, get_args

import torch
from torch import nn

from imagegpt.common import ranges
from imagegpt.config import ImageGPTConfig
from imagegpt.kernels import step as kernel
from imagegpt.model import cost
from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.sampling.backends import cpp
from imagegpt.sampling.backends.base import StepBackend
from imagegpt.sampling.backends.cpp import CppBackend
from imagegpt.sampling.backends.cuda_graphs import CudaGraphBackend
from imagegpt.sampling.backends.pytorch import TorchBackend, device_of, resolve_attention
from imagegpt.sampling.decoders import DECODERS, BackendFactory, DecoderFactory
from imagegpt.sampling.drafting import bigram_table_bytes
from imagegpt.sampling.packed_linear import Layout, PackedLinear, prepare_model, prepared_bytes
from imagegpt.sampling.prompts import resolve_num_pixels
from imagegpt.sampling.session import Session
from imagegpt.sampling.weight_formats import WeightFormat, choose_format

BackendName = Literal["cpp", "torch", "cuda"]
BackendOption = Literal["auto"] | BackendName

# Without max_memory, keys and values of a batch take at most this much, or half of a GPU's memory. Larger batches gain
# little on a CPU, where 8 images already share each read of the weights.
_CACHE_BYTES_ON_CPU = 1 << 30
_MAX_BATCH_SIZE = 256

_IMPORTING_PROCESS = os.getpid()


@dataclass(frozen=True, kw_only=True)
class ExecutionPlan:
    """How to sample a model. Images depend on its model, precision and backend, and on none of the other fields.

    Args:
        model: prepared; do not change it.
        precision: of its weights, and of keys and values.
        decoder: name of the decoder; the images do not depend on it.
        backend: computes a step: "cpp" in one call of our C++ kernels, "torch" in torch, "cuda" in torch, captured in
            CUDA graphs.
        device: of the model.
        batch_size: maximum images per batch.
        cache_bytes_per_pixel: size of the keys and values of one pixel of one image.
        make_backend: makes a backend from capacity and pixels per image.
        make_decoder: makes a decoder from pixels per image.
    """

    model: ImageGPTForCausalImageModeling = field(repr=False, compare=False)
    precision: str
    decoder: str
    backend: BackendName
    device: str
    batch_size: int
    cache_bytes_per_pixel: int
    make_backend: BackendFactory = field(repr=False, compare=False)
    make_decoder: DecoderFactory = field(repr=False, compare=False)

    @classmethod
    def choose(
        cls,
        model: ImageGPTForCausalImageModeling,
        *,
        precision: str | None = None,
        decoder: str = "sequential",
        backend: BackendOption = "auto",
        max_memory: int | None = None,
        in_place: bool = False,
    ) -> Self:
        """Decide how to sample a model, and prepare it. The other options are those of `Sampler`.

        Args:
            model: on the device to sample on. It is copied, unless its weights are offloaded, or `in_place`.
            backend: one of `BackendName`; "auto" is "cuda" on an NVIDIA GPU, else "cpp" where it supports the model,
                else "torch".
        Raises: TypeError or ValueError for a model that cannot be sampled, and for unknown or conflicting options.
        """
        _use_one_thread_after_fork()
        _check_model(model)
        prepare_decoder = DECODERS.get(decoder)
        weight_format = _choose_weight_format(model, precision)
        backend = _choose_backend(model, weight_format, backend)
        layout: Layout = "tiles" if backend == "cpp" else "rows"
        cache_dtype, pixel_bytes = _cache_layout(model, weight_format, backend)
        # Checks max_memory before `prepare_model`, which may change the caller's model.
        batch_size = _batch_size(model, weight_format, layout, decoder, pixel_bytes, max_memory)
        if not _is_offloaded(model):
            model = prepare_model(model, weight_format, layout, in_place=in_place)
        device = device_of(model.transformer.wte, model.device)
        make_backend = functools.partial(_make_backend, model, backend, cache_dtype)
        return cls(
            model=model,
            precision=str(model.dtype).removeprefix("torch.") if weight_format is None else weight_format.name,
            decoder=decoder,
            backend=backend,
            device=str(device),
            batch_size=batch_size,
            cache_bytes_per_pixel=pixel_bytes,
            make_backend=make_backend,
            make_decoder=prepare_decoder(make_backend, model.config, device),
        )

    def open_session(self, capacity: int, num_pixels: int | None = None) -> Session:
        """Allocate a session.

        Args:
            capacity: maximum number of images at a time.
            num_pixels: per image; None is all that the model has positions for.
        Raises: ValueError if the model has fewer positions, or was changed so that the backend no longer supports it.
        """
        _use_one_thread_after_fork()
        num_pixels = resolve_num_pixels(num_pixels, self.model.config)
        backend, decoder = self.make_backend(capacity, num_pixels), self.make_decoder(num_pixels)
        return Session(backend, decoder, capacity, num_pixels, self.device)

    @property
    def bytes_per_image(self) -> int:
        """Memory per image while sampling: keys and values, noise, and ids."""
        return _bytes_per_image(self.model.config, self.cache_bytes_per_pixel)

    def __str__(self) -> str:
        engine = {"cpp": "C++ kernels", "torch": "torch", "cuda": "CUDA graphs"}[self.backend]
        return f"{self.precision} on {self.device}, {engine}, batches of {self.batch_size} images"


def _use_one_thread_after_fork() -> None:
    """A fork does not copy OpenMP's threads, and waiting for them would never end, in torch as in our kernels."""
    if os.getpid() != _IMPORTING_PROCESS and torch.get_num_threads() > 1:
        torch.set_num_threads(1)


def _make_backend(
    model: ImageGPTForCausalImageModeling,
    backend: BackendName,
    cache_dtype: torch.dtype,
    capacity: int,
    num_pixels: int,
) -> StepBackend:
    if backend != "cpp":
        backend_class = CudaGraphBackend if backend == "cuda" else TorchBackend
        return backend_class(model, capacity, num_pixels, cache_dtype)
    if reason := cpp.unsupported_reason(model):
        raise ValueError(
            f"the model was changed after it was prepared, and the C++ kernels no longer support it ({reason}): make a "
            "new Sampler, or one with backend='torch'"
        )
    return CppBackend(model, capacity, num_pixels)


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, ImageGPTForCausalImageModeling):
        raise TypeError(f"cannot sample from a {type(model).__name__}: give an ImageGPTForCausalImageModeling")
    if not model.config.is_causal:
        raise ValueError(
            "this model is bidirectional (is_causal=False) and cannot sample pixels in order: give a causal one"
        )
    if model.config.add_cross_attention:
        raise ValueError(
            "this model has cross-attention (add_cross_attention=True) and needs an encoder: use its generate()"
        )


def _choose_weight_format(model: ImageGPTForCausalImageModeling, precision: str | None) -> WeightFormat | None:
    """The format to store weights in; None keeps them unchanged."""
    if _is_offloaded(model):
        if precision is not None:
            raise ValueError(
                f"precision is {precision!r}, but the weights of this model are offloaded and cannot be converted: "
                "leave it out"
            )
        return None
    packed = next((module for module in model.modules() if isinstance(module, PackedLinear)), None)
    if packed is not None and precision is None:
        return packed.format
    return choose_format(precision, model.device, model.dtype)


def _is_offloaded(model: nn.Module) -> bool:
    """Whether accelerate stores weights elsewhere and fetches them when needed."""
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def _choose_backend(
    model: ImageGPTForCausalImageModeling, weight_format: WeightFormat | None, option: BackendOption
) -> BackendName:
    if option not in ("auto", *get_args(BackendName)):
        raise ValueError(f"backend is {option!r}: choose one of auto, {', '.join(get_args(BackendName))}")
    if option == "cuda" and model.device.type != "cuda":
        raise ValueError(f"backend is 'cuda' and the model is on {model.device}: move it, or choose another")
    if option == "auto" and model.device.type == "cuda" and not _is_offloaded(model):
        option = "cuda"
    if option in ("auto", "cpp"):
        reason = _why_not_cpp(model, weight_format, should_warn=option == "auto")
        if reason is None:
            return "cpp"
        if option == "cpp":
            raise ValueError(f"backend is 'cpp', which does not support this model ({reason}): choose auto or torch")
    resolve_attention(model)  # raises if its attention needs another backend
    return "cuda" if option == "cuda" else "torch"


def _why_not_cpp(
    model: ImageGPTForCausalImageModeling, weight_format: WeightFormat | None, *, should_warn: bool
) -> str | None:
    """Why the C++ kernels cannot sample a model; None if they can. Compiles them; warns if that fails."""
    if weight_format is None:
        return "there is no kernel for its weights"
    reason = cpp.unsupported_reason(model, weight_format)
    if reason is None and weight_format.kernel_dtype is not None:
        try:
            kernel.load_step_library(weight_format.kernel_dtype, model.config.n_embd // model.config.n_head)
        except Exception as error:  # noqa: BLE001 - no compiler, no disk space: the remedy is the same
            reason = " ".join(str(error).split())
            if should_warn:
                warnings.warn(f"sampling runs in torch, which is slower: {reason}", stacklevel=2)
    return reason


def _cache_layout(
    model: ImageGPTForCausalImageModeling, weight_format: WeightFormat | None, backend: BackendName
) -> tuple[torch.dtype, int]:
    """The dtype of keys and values (that of the weights, where attention can read it), and their bytes per pixel."""
    if weight_format is None:
        return model.dtype, cost.cache_bytes_per_pixel(model.config, model.dtype.itemsize)
    if backend != "cpp" or weight_format.kernel_dtype is None:
        dtype = weight_format.cache_dtype
        return dtype, cost.cache_bytes_per_pixel(model.config, dtype.itemsize)
    dtype = weight_format.dtype
    return dtype, cpp.cache_elements_per_position(model, weight_format.kernel_dtype) * dtype.itemsize


def _bytes_per_image(config: ImageGPTConfig, cache_bytes_per_pixel: int) -> int:
    noise = config.num_colors * torch.float32.itemsize
    return config.n_positions * (cache_bytes_per_pixel + noise + torch.int64.itemsize)


def _batch_size(
    model: ImageGPTForCausalImageModeling,
    weight_format: WeightFormat | None,
    layout: Layout,
    decoder: str,
    cache_bytes_per_pixel: int,
    max_memory: int | None,
) -> int:
    """Maximum images per batch.

    Raises: ValueError if not even one fits into `max_memory`.
    """
    limit = ranges.MEMORY_BYTES.check_optional("max_memory", max_memory)
    image_bytes = _bytes_per_image(model.config, cache_bytes_per_pixel)
    if limit is None:
        on_gpu = model.device.type == "cuda"
        available = torch.cuda.get_device_properties(model.device).total_memory // 2 if on_gpu else _CACHE_BYTES_ON_CPU
        return max(1, min(_MAX_BATCH_SIZE, available // image_bytes))
    table = bigram_table_bytes(model.config.num_colors) if decoder == "parallel" else 0
    weights = prepared_bytes(model, weight_format, layout) + table
    if limit < weights + image_bytes:
        raise ValueError(
            f"max_memory is {limit:,} bytes, but the weights take {weights:,} and an image {image_bytes:,}: "
            "allow more, or choose a smaller precision"
        )
    return min(_MAX_BATCH_SIZE, (limit - weights) // image_bytes)
