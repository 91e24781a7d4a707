"""How a model is sampled, decided once: precision, backend, images at a time."""

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
from imagegpt.sampling.backends.cpp import CppStep
from imagegpt.sampling.backends.cuda_graphs import CudaStep
from imagegpt.sampling.backends.pytorch import TorchStep, attention_of, device_of
from imagegpt.sampling.decoders import MakeDecoder, OpenBackend, decoder_of
from imagegpt.sampling.drafting import influence_bytes
from imagegpt.sampling.packed_linear import Layout, PackedLinear, prepare, prepared_bytes
from imagegpt.sampling.prompts import checked_length
from imagegpt.sampling.session import Session
from imagegpt.sampling.weight_formats import WeightFormat, choose_format

BackendName = Literal["cpp", "torch", "cuda"]
BackendOption = Literal["auto"] | BackendName

# By default, images at a time are as many as have keys and values of this size, or of half a GPU's memory. More gain
# little on a CPU, where 8 images already share each read of the weights.
_CACHE_BYTES_ON_CPU = 1 << 30
_LARGEST_BATCH = 256

_IMPORTED_BY = os.getpid()


@dataclass(frozen=True, kw_only=True)
class ExecutionPlan:
    """How a model is sampled. Images depend on its model, precision and backend, and on nothing else that is here.

    Args:
        model: prepared; do not change it.
        precision: of its weights, and of keys and values.
        decoder: how pixels are drawn, by its name; the images do not depend on it.
        backend: what computes a step: "cpp" in one call of our C++ kernels, "torch" in torch's operations, "cuda" as
            recorded graphs of these.
        device: of the model.
        batch_size: most images at a time.
        cache_bytes_per_pixel: keys and values of a pixel, of an image.
        open_backend: makes the backend, by capacity and pixels of the images.
        make_decoder: makes the decoder, by pixels of the images.
    """

    model: ImageGPTForCausalImageModeling = field(repr=False, compare=False)
    precision: str
    decoder: str
    backend: BackendName
    device: str
    batch_size: int
    cache_bytes_per_pixel: int
    open_backend: OpenBackend = field(repr=False, compare=False)
    make_decoder: MakeDecoder = field(repr=False, compare=False)

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
        """Decide how to sample a model, and prepare it.

        Args:
            model: on the device where it is to run. It is copied as it is now, unless its weights are somewhere else
                (offloaded), or `in_place`.
            precision: see `Sampler`.
            decoder: likewise.
            backend: one of `BackendName`; "auto" is "cuda" on an NVIDIA GPU, else "cpp" where that computes the model,
                else "torch".
            max_memory: bytes that weights, keys and values may take.
            in_place: prepare the model itself, so that its weights are in memory once.
        Raises: TypeError or ValueError for a model that cannot be sampled, and for options that do not exist or fit.
        """
        _use_one_thread_after_fork()
        _check_model(model)
        prepare_decoder = decoder_of(decoder)
        if backend not in ("auto", *get_args(BackendName)):
            raise ValueError(f"backend is {backend!r}: choose one of auto, {', '.join(get_args(BackendName))}")
        weight_format = _format_of(model, precision)
        chosen = _choose_backend(model, weight_format, backend)
        if chosen != "cpp":
            attention_of(model)
        layout: Layout = "tiles" if chosen == "cpp" else "rows"
        cache_dtype = _cache_dtype(model, weight_format, chosen)
        pixel_bytes = _cache_bytes_per_pixel(model, weight_format, chosen, cache_dtype)
        # Before the model is touched, which may be the caller's own.
        batch_size = _batch_size(model, weight_format, layout, decoder, pixel_bytes, max_memory)
        if not _is_placed(model):
            model = prepare(model, weight_format, layout, in_place=in_place)
        device = device_of(model.transformer.wte, model.device)
        open_backend = functools.partial(_open_backend, model, chosen, cache_dtype)
        return cls(
            model=model,
            precision=str(model.dtype).removeprefix("torch.") if weight_format is None else weight_format.name,
            decoder=decoder,
            backend=chosen,
            device=str(device),
            batch_size=batch_size,
            cache_bytes_per_pixel=pixel_bytes,
            open_backend=open_backend,
            make_decoder=prepare_decoder(open_backend, model.config, device),
        )

    def open(self, capacity: int, num_pixels: int | None = None) -> Session:
        """Make room for some images.

        Args:
            capacity: most images at a time.
            num_pixels: of whole images; None is all that the model has positions for.
        Raises: ValueError if the model has no positions for so many pixels, or was changed so that the backend cannot
            compute it any more.
        """
        _use_one_thread_after_fork()
        num_pixels = checked_length(num_pixels, self.model.config)
        backend, decoder = self.open_backend(capacity, num_pixels), self.make_decoder(num_pixels)
        return Session(backend, capacity, num_pixels, self.device, decoder)

    @property
    def bytes_per_image(self) -> int:
        """Memory that an image takes while it is sampled: keys and values, noise, and its ids."""
        return _bytes_per_image(self.model.config, self.cache_bytes_per_pixel)

    def __str__(self) -> str:
        how = {"cpp": "in C++", "torch": "in torch", "cuda": "in CUDA graphs"}[self.backend]
        return f"{self.precision} on {self.device}, {how}, {self.batch_size} images at a time"


def _use_one_thread_after_fork() -> None:
    """In a forked process the threads of OpenMP are gone, and whoever waits for them waits for ever: torch, too."""
    if os.getpid() != _IMPORTED_BY and torch.get_num_threads() > 1:
        torch.set_num_threads(1)


def _open_backend(
    model: ImageGPTForCausalImageModeling,
    backend: BackendName,
    cache_dtype: torch.dtype,
    capacity: int,
    num_pixels: int,
) -> StepBackend:
    if backend != "cpp":
        kind = CudaStep if backend == "cuda" else TorchStep
        return kind(model, capacity, num_pixels, cache_dtype)
    if reason := cpp.reason_against(model):
        raise ValueError(
            f"the model was changed after it was prepared, and C++ cannot compute it now ({reason}): make a new "
            "Sampler, or one with backend='torch'"
        )
    return CppStep(model, capacity, num_pixels)


def _check_model(model: nn.Module) -> None:
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


def _format_of(model: ImageGPTForCausalImageModeling, precision: str | None) -> WeightFormat | None:
    """The format to store weights in; None leaves the model as it is."""
    if _is_placed(model):
        if precision is not None:
            raise ValueError(
                f"precision is {precision!r}, and hooks move this model's weights, which stay as they are: leave it out"
            )
        return None
    packed = next((module for module in model.modules() if isinstance(module, PackedLinear)), None)
    if packed is not None and precision is None:
        return packed.format
    return choose_format(precision, model.device, model.dtype)


def _is_placed(model: nn.Module) -> bool:
    """Whether accelerate keeps weights somewhere else and brings them when they are needed."""
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def _choose_backend(
    model: ImageGPTForCausalImageModeling, weight_format: WeightFormat | None, backend: BackendOption
) -> BackendName:
    if backend == "cuda" and model.device.type != "cuda":
        raise ValueError(f"backend is 'cuda' and the model is on {model.device}: move it, or choose another")
    if backend in ("torch", "cuda"):
        return backend
    if backend == "auto" and model.device.type == "cuda" and not _is_placed(model):
        return "cuda"
    reason = "its weights stay as they are" if weight_format is None else cpp.reason_against(model, weight_format)
    if reason is None and weight_format is not None and weight_format.kind is not None:
        try:
            kernel.loaded_step(weight_format.kind, model.config.n_embd // model.config.n_head)
            return "cpp"
        except Exception as error:  # noqa: BLE001 - no compiler, no disk: all the same here
            reason = " ".join(str(error).split())
            if backend == "auto":
                warnings.warn(f"sampling goes on in torch and slower: {reason}", stacklevel=2)
    if backend == "cpp":
        raise ValueError(f"backend is 'cpp', which cannot compute this model ({reason}): choose auto or torch")
    return "torch"


def _cache_dtype(
    model: ImageGPTForCausalImageModeling, weight_format: WeightFormat | None, backend: BackendName
) -> torch.dtype:
    """Of keys and values: as the weights, where attention knows how to read them."""
    if weight_format is None:
        return model.dtype
    return weight_format.dtype if backend == "cpp" else weight_format.cache_dtype


def _cache_bytes_per_pixel(
    model: ImageGPTForCausalImageModeling, weight_format: WeightFormat | None, backend: BackendName, dtype: torch.dtype
) -> int:
    if backend == "cpp" and weight_format is not None and weight_format.kind is not None:
        return cpp.numbers_per_position(model, weight_format.kind) * dtype.itemsize
    return cost.cache_bytes_per_pixel(model.config, dtype.itemsize)


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
    """Images at a time.

    Raises: ValueError if not even one fits into `max_memory`.
    """
    limit = ranges.MEMORY_BYTES.check_if_given("max_memory", max_memory)
    image_bytes = _bytes_per_image(model.config, cache_bytes_per_pixel)
    if limit is None:
        on_gpu = model.device.type == "cuda"
        room = torch.cuda.get_device_properties(model.device).total_memory // 2 if on_gpu else _CACHE_BYTES_ON_CPU
        return max(1, min(_LARGEST_BATCH, room // image_bytes))
    table = influence_bytes(model.config.num_colors) if decoder == "parallel" else 0
    weights = prepared_bytes(model, weight_format, layout) + table
    if limit < weights + image_bytes:
        raise ValueError(
            f"max_memory is {limit:,} bytes, the weights take {weights:,} and an image {image_bytes:,}: "
            "allow more, or choose a smaller precision"
        )
    return min(_LARGEST_BATCH, (limit - weights) // image_bytes)
