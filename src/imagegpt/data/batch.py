"""What a model trains on in one forward pass.

Axis letters: B images, T pixels in raster order, V colours, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch of images.

    Attributes:
        ids: pixels, 0 to V - 1.
        labels: the class of each image, 0 to K - 1; None for unlabelled images.
        masked: True where a pixel is hidden from a bidirectional model; None without masking.
    """

    ids: Int[Tensor, "b t"]
    labels: Int[Tensor, " b"] | None = None
    masked: Bool[Tensor, "b t"] | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """Return a copy on a device; copies from pinned memory are asynchronous."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Return a copy in pinned memory; `torch.utils.data.DataLoader` calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        labels = None if self.labels is None else function(self.labels)
        masked = None if self.masked is None else function(self.masked)
        return Batch(ids=function(self.ids), labels=labels, masked=masked)
