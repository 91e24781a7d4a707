"""The step on an NVIDIA GPU: `TorchStep`, recorded as CUDA graphs, so that some hundred kernels cost one launch."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.sampling.backends.pytorch import TorchStep, rounded

_LENGTHS = 4  # of the cache that graphs are recorded for: more would save reading, and take time to record


class CudaStep(TorchStep):
    """See `StepBackend`.

    For each number of positions and each length of the cache the step is run as it is the first time, which lets it
    allocate, recorded the second time, and replayed from then on. Where recording fails it goes on running as it is,
    and that is said once.

    Args:
        model: prepared or not, on a GPU.
        capacity: most rows.
        num_pixels: of whole images.
        cache_dtype: of keys and values.
    """

    def __init__(
        self, model: ImageGPTForCausalImageModeling, capacity: int, num_pixels: int, cache_dtype: torch.dtype
    ) -> None:
        super().__init__(model, capacity, num_pixels, cache_dtype)
        self._length_step = rounded(-(-num_pixels // _LENGTHS))
        self._longest = rounded(num_pixels)
        self._recorded: dict[tuple[int, int], _Recorded] = {}
        self._records = True
        self._pool: Any = None  # of memory: graphs run one after the other and may share it

    def step(
        self, tokens: Int64[Tensor, "b n"], positions: Int64[Tensor, "b n"], rows: Sequence[int], longest: int
    ) -> Float32[Tensor, "b n v"]:
        """See `StepBackend`. What is returned is overwritten by the next step of as many positions."""
        length = min(-(-longest // self._length_step) * self._length_step, self._longest)
        with torch.cuda.device(self._device):  # graphs belong to the current device, whatever is recorded
            return super().step(tokens, positions, rows, length)

    def _logits(self, tokens: Tensor, positions: Tensor, num_seen: int) -> Tensor:
        recorded = self._recorded.get((tokens.shape[1], num_seen))
        if recorded is None or not self._records:
            self._recorded[tokens.shape[1], num_seen] = _Recorded(tokens, positions)
            return super()._logits(tokens, positions, num_seen)
        recorded.tokens.copy_(tokens)
        recorded.positions.copy_(positions)
        if recorded.graph is None and not self._record(recorded, num_seen):
            return super()._logits(tokens, positions, num_seen)
        assert recorded.graph is not None
        assert recorded.logits is not None
        recorded.graph.replay()
        return recorded.logits

    def _record(self, recorded: "_Recorded", num_seen: int) -> bool:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                recorded.logits = super()._logits(recorded.tokens, recorded.positions, num_seen)
        except RuntimeError as error:
            self._records = False
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            warnings.warn(f"sampling goes on without CUDA graphs and slower: {reason}", stacklevel=2)
            return False
        recorded.graph, self._pool = graph, graph.pool()
        return True


class _Recorded:
    """A recorded step and the tensors it reads and writes, which stay where they are."""

    def __init__(self, tokens: Tensor, positions: Tensor) -> None:
        self.tokens, self.positions = tokens.clone(), positions.clone()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits: Tensor | None = None
