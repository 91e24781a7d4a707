"""The ways to draw pixels, by name. To add one, write a `Decoder` and call `register_decoder`."""

from collections.abc import Callable

import torch

from imagegpt.config import ImageGPTConfig
from imagegpt.sampling.backends.base import StepBackend
from imagegpt.sampling.parallel import prepare_parallel
from imagegpt.sampling.session import Decoder, SequentialDecoder

OpenBackend = Callable[[int, int], StepBackend]  # by capacity and pixels of the images
MakeDecoder = Callable[[int], Decoder]  # by pixels of the images
PrepareDecoder = Callable[[OpenBackend, ImageGPTConfig, torch.device], MakeDecoder]


def _prepare_sequential(open_backend: OpenBackend, config: ImageGPTConfig, device: torch.device) -> MakeDecoder:
    return lambda _: SequentialDecoder()


_DECODERS: dict[str, PrepareDecoder] = {"sequential": _prepare_sequential, "parallel": prepare_parallel}


def register_decoder(name: str, prepare: PrepareDecoder) -> None:
    """Make a decoder known.

    Args:
        name: what a user calls it.
        prepare: does what is done once for a model, and gives what makes a decoder for each session.
    Raises: ValueError if there is another of that name.
    """
    if name in _DECODERS:
        raise ValueError(f"there is a decoder {name!r} already: choose another name")
    _DECODERS[name] = prepare


def decoder_of(name: str) -> PrepareDecoder:
    """The decoder of a name.

    Raises: ValueError if nobody registered it.
    """
    if name not in _DECODERS:
        raise ValueError(f"decoder is {name!r}: choose one of {', '.join(_DECODERS)}")
    return _DECODERS[name]
