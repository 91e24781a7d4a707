"""The step on an NVIDIA GPU: `TorchBackend`, captured in CUDA graphs, so that hundreds of kernels cost one launch."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.sampling.backends.pytorch import TorchBackend, round_to_bucket

_NUM_CACHE_LENGTHS = 4  # with a graph of their own: more would read less of the cache, but take longer to capture


class CudaGraphBackend(TorchBackend):
    """See `StepBackend`.

    There is a graph for each number of positions and each cache length. The first such step runs eagerly, as a warm-up
    that allocates memory, the second is captured, and later ones replay the graph. If capturing fails, the backend
    warns once and runs eagerly.

    Args:
        model: prepared or not, on a GPU.
    """

    def __init__(
        self, model: ImageGPTForCausalImageModeling, capacity: int, num_pixels: int, cache_dtype: torch.dtype
    ) -> None:
        super().__init__(model, capacity, num_pixels, cache_dtype)
        self._length_multiple = round_to_bucket(-(-num_pixels // _NUM_CACHE_LENGTHS))
        self._max_length = round_to_bucket(num_pixels)
        self._captures: dict[tuple[int, int], _Capture] = {}
        self._can_capture = True
        self._memory_pool: Any = None  # shared, because graphs run one after the other

    def step(
        self, tokens: Int64[Tensor, "b n"], positions: Int64[Tensor, "b n"], rows: Sequence[int], longest: int
    ) -> Float32[Tensor, "b n v"]:
        """See `StepBackend`. The next step with as many positions overwrites the result."""
        length = min(-(-longest // self._length_multiple) * self._length_multiple, self._max_length)
        with torch.cuda.device(self._device):  # a graph is captured on the current device, whatever the tensors are on
            return super().step(tokens, positions, rows, length)

    def _logits(self, tokens: Tensor, positions: Tensor, cache_length: int) -> Tensor:
        capture = self._captures.get((tokens.shape[1], cache_length))
        if capture is None or not self._can_capture:
            self._captures[tokens.shape[1], cache_length] = _Capture(tokens, positions)
            return super()._logits(tokens, positions, cache_length)
        capture.tokens.copy_(tokens)
        capture.positions.copy_(positions)
        if capture.graph is None and not self._capture(capture, cache_length):
            return super()._logits(tokens, positions, cache_length)
        assert capture.graph is not None
        assert capture.logits is not None
        capture.graph.replay()
        return capture.logits

    def _capture(self, capture: "_Capture", cache_length: int) -> bool:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._memory_pool):
                capture.logits = super()._logits(capture.tokens, capture.positions, cache_length)
        except RuntimeError as error:
            self._can_capture = False
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            warnings.warn(f"sampling runs without CUDA graphs, which is slower: {reason}", stacklevel=2)
            return False
        capture.graph, self._memory_pool = graph, graph.pool()
        return True


class _Capture:
    """A captured step, and its static input and output buffers."""

    def __init__(self, tokens: Tensor, positions: Tensor) -> None:
        self.tokens, self.positions = tokens.clone(), positions.clone()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits: Tensor | None = None
