"""Recording steps on a GPU, so that a step of some hundred kernels costs one launch."""

import warnings
from collections.abc import Callable, Hashable

import torch


class Recorder:
    """Runs functions that work on tensors which stay where they are; on a GPU records each as a CUDA graph.

    A function is run as it is the first time, which lets it compile and allocate, recorded the second time, and
    replayed from then on. Where recording fails, functions go on running as they are, and it is said once.

    Args:
        enabled: whether to record; otherwise functions just run.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        self._pool = None

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        """Run a function.

        Args:
            key: of functions with the same key only the first two are called: all must do the same.
            function: takes what it needs from tensors that stay where they are, and leaves its results there.
        """
        if not self.enabled or key not in self._graphs:
            self._graphs[key] = None
            function()
            return
        graph = self._graphs[key] or self._record(function)
        if graph is None:
            function()
            return
        self._graphs[key] = graph
        graph.replay()

    def _record(self, function: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                function()
        except RuntimeError as error:
            self.enabled = False
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            warnings.warn(f"sampling goes on without CUDA graphs and slower: {reason}", stacklevel=2)
            return None
        self._pool = graph.pool()  # graphs run one after the other and may share their memory
        return graph
