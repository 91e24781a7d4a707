"""The decoders by name. To add one, write a `Decoder` and register a function that prepares it in `DECODERS`."""

from collections.abc import Callable

import torch

from imagegpt.common.registry import Registry
from imagegpt.config import ImageGPTConfig
from imagegpt.sampling.backends.base import StepBackend
from imagegpt.sampling.parallel import prepare_parallel
from imagegpt.sampling.sequential import SequentialDecoder
from imagegpt.sampling.session import Decoder

BackendFactory = Callable[[int, int], StepBackend]  # (capacity, pixels per image) -> backend
DecoderFactory = Callable[[int], Decoder]  # pixels per image -> decoder

# Called once per model: does the work that all sessions share, and returns what makes the decoder of a session.
PrepareDecoder = Callable[[BackendFactory, ImageGPTConfig, torch.device], DecoderFactory]

DECODERS: Registry[PrepareDecoder] = Registry("decoder", "imagegpt.decoders")
DECODERS.register("parallel")(prepare_parallel)


@DECODERS.register("sequential")
def prepare_sequential(make_backend: BackendFactory, config: ImageGPTConfig, device: torch.device) -> DecoderFactory:
    """Prepare nothing: sequential decoding shares no work."""
    return lambda _: SequentialDecoder()
