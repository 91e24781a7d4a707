"""Sequential decoding, and the decoders by name.

To add a decoder, write a `Decoder` and register a function that prepares it in `DECODERS`.
"""

from collections.abc import Callable

import torch

from imagegpt.common.registry import Registry
from imagegpt.config import ImageGPTConfig
from imagegpt.sampling.backends.base import StepBackend
from imagegpt.sampling.parallel import prepare_parallel
from imagegpt.sampling.session import Decoder, Session, index_tensor

BackendFactory = Callable[[int, int], StepBackend]  # (capacity, pixels per image) -> backend
DecoderFactory = Callable[[int], Decoder]  # pixels per image -> decoder

# Called once per model: does the work that all sessions share, and returns what makes the decoder of a session.
PrepareDecoder = Callable[[BackendFactory, ImageGPTConfig, torch.device], DecoderFactory]


class SequentialDecoder(Decoder):
    """Samples the next pixel of each row, one per pass."""

    def advance(self, session: Session, rows: list[int]) -> None:
        """See `Decoder`."""
        positions = index_tensor([[session.positions[row]] for row in rows], session.tokens.device)
        tokens = session.tokens[session.row_index(rows)].gather(1, positions)
        scores = session.compute_scores(rows, tokens, positions)
        session.write_pixels(rows, scores.argmax(dim=-1), positions)
        for row in rows:
            session.positions[row] += 1
        session.statistics.add(len(rows), len(rows), 1)


DECODERS: Registry[PrepareDecoder] = Registry("decoder", "imagegpt.decoders")
DECODERS.register("parallel")(prepare_parallel)
DECODERS.register("sequential")(lambda *_: lambda _: SequentialDecoder())  # its sessions share no work
