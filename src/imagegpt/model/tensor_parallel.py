"""Tensor parallelism: each device holds some heads of every attention and some columns of every MLP.

transformers' own styles ("colwise", "rowwise") are for `nn.Linear`, whose weight lies (out, in), and know nothing of
queries, keys and values packed into one matrix. The three styles here are theirs for `Projection`, (in, out). They are
used by `from_pretrained(..., tp_plan="auto")` under `torchrun`, through `ImageGPTConfig.base_model_tp_plan`.

    queries, keys, values   (C, 3 C)   by columns, each third for itself    no communication
    attention's output      (C, C)     by rows                              one all-reduce
    MLP in                  (C, 4 C)   by columns                           no communication
    MLP out                 (4 C, C)   by rows                              one all-reduce
"""

from typing import Any

from torch import nn
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from transformers.distributed import tensor_parallel
from transformers.distributed.tensor_parallel import ColwiseParallel, PackedColwiseParallel, RowwiseParallel


def _place(module: nn.Module, name: str, mesh: Any, placement: Any) -> None:
    parameter = module._parameters.get(name)
    if parameter is not None:
        split = distribute_tensor(parameter, mesh, [placement], src_data_rank=None)
        module._parameters[name] = nn.Parameter(split, requires_grad=parameter.requires_grad)


class ProjectionByColumns(ColwiseParallel):
    """Each device computes some of the outputs."""

    def shard_param(self, module: nn.Module, param: str, mesh: Any) -> None:
        """Split the weight (in, out) and the bias (out,) along the outputs."""
        _place(module, param, mesh, Shard(-1))


class PackedProjectionByColumns(PackedColwiseParallel):
    """Each device computes some of the outputs of each of several matrices that lie side by side."""

    def shard_param(self, module: nn.Module, param: str, mesh: Any) -> None:
        """Split the weight (in, parts * out) and the bias along the outputs of every part."""
        parameter = module._parameters.get(param)
        if parameter is not None:
            _place(module, param, mesh, _StridedShard(dim=parameter.ndim - 1, split_factor=self.split_factor))


class ProjectionByRows(RowwiseParallel):
    """Each device takes some of the inputs; the sums are added up, the bias once."""

    def shard_param(self, module: nn.Module, param: str, mesh: Any) -> None:
        """Split the weight (in, out) along the inputs; keep the bias whole."""
        _place(module, param, mesh, Replicate() if param == "bias" else Shard(0))


def register_parallel_styles() -> None:
    """Make the styles known to transformers by the names that `ImageGPTConfig.base_model_tp_plan` uses."""
    styles: Any = tensor_parallel.ALL_PARALLEL_STYLES  # type: ignore[reportPrivateImportUsage]
    styles.register("imagegpt_columns", ProjectionByColumns())
    styles.register("imagegpt_qkv_columns", PackedProjectionByColumns(split_factor=3))
    styles.register("imagegpt_rows", ProjectionByRows())
