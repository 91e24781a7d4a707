"""Tensor parallelism: every device holds some heads of each attention and some columns of each MLP.

transformers' styles ("colwise", "rowwise") are for `nn.Linear`, whose weight is (out, in), and do not support queries,
keys and values packed into one matrix. The three styles here are the same for `Projection`, (in, out). They are used by
`from_pretrained(..., tp_plan="auto")` under `torchrun`, through `ImageGPTConfig.base_model_tp_plan`.

    queries, keys, values   (C, 3 C)   colwise, each third separately   no communication
    attention's output      (C, C)     rowwise                          one all-reduce
    MLP in                  (C, 4 C)   colwise                          no communication
    MLP out                 (4 C, C)   rowwise                          one all-reduce
"""

from typing import Any

from torch import nn
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from transformers.distributed import tensor_parallel
from transformers.distributed.tensor_parallel import ColwiseParallel, PackedColwiseParallel, RowwiseParallel


def _distribute_parameter(module: nn.Module, name: str, mesh: Any, placement: Any) -> None:
    parameter = module._parameters.get(name)
    if parameter is not None:
        shard = distribute_tensor(parameter, mesh, [placement], src_data_rank=None)
        module._parameters[name] = nn.Parameter(shard, requires_grad=parameter.requires_grad)


class ColwiseProjectionParallel(ColwiseParallel):
    """Each device computes some of the outputs."""

    def shard_param(self, module: nn.Module, param: str, mesh: Any) -> None:
        """Shard the weight (in, out) and the bias (out,) along the outputs."""
        _distribute_parameter(module, param, mesh, Shard(-1))


class PackedColwiseProjectionParallel(PackedColwiseParallel):
    """Each device computes some of the outputs of every matrix packed into one weight."""

    def shard_param(self, module: nn.Module, param: str, mesh: Any) -> None:
        """Shard the weight (in, n * out) and the bias along the outputs of each of n packed matrices."""
        parameter = module._parameters.get(param)
        if parameter is not None:
            _distribute_parameter(
                module, param, mesh, _StridedShard(dim=parameter.ndim - 1, split_factor=self.split_factor)
            )


class RowwiseProjectionParallel(RowwiseParallel):
    """Each device multiplies some of the inputs; an all-reduce adds the results, and the bias once."""

    def shard_param(self, module: nn.Module, param: str, mesh: Any) -> None:
        """Shard the weight (in, out) along the inputs; replicate the bias."""
        _distribute_parameter(module, param, mesh, Replicate() if param == "bias" else Shard(0))


def register_parallel_styles() -> None:
    """Register the styles with transformers under the names in `ImageGPTConfig.base_model_tp_plan`."""
    styles: Any = tensor_parallel.ALL_PARALLEL_STYLES  # type: ignore[reportPrivateImportUsage]
    styles.register("imagegpt_colwise", ColwiseProjectionParallel())
    styles.register("imagegpt_packed_colwise", PackedColwiseProjectionParallel(split_factor=3))
    styles.register("imagegpt_rowwise", RowwiseProjectionParallel())
