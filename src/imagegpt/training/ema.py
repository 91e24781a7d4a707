"""An exponential moving average of a model's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from imagegpt.training.parallelism import local_tensor


class ExponentialMovingAverage:
    """An exponential moving average of the trainable weights of a model.

    The decay of step s is min(decay, (1 + s) / (10 + s)), so that the average soon forgets the initial weights.

    Args:
        model: whose weights are averaged. Where they are sharded, the average is sharded alike.
        decay: per step, in [0, 1); None averages nothing and takes no memory.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self.decay = decay
        self._model = model
        self.weights = {name: weight.detach().clone() for name, weight in self._averaged()}

    def _averaged(self) -> Iterator[tuple[str, Tensor]]:
        if self.decay is not None:
            yield from ((name, weight) for name, weight in self._model.named_parameters() if weight.requires_grad)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the weights after step 0, 1, ..."""
        if self.decay is None:
            return
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, weight in self._averaged():
            local_tensor(self.weights[name]).lerp_(local_tensor(weight), 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Context manager in which the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self._averaged():
            weight, average = local_tensor(weight), local_tensor(self.weights[name])
            trained = weight.clone()
            weight.copy_(average)
            average.copy_(trained)
