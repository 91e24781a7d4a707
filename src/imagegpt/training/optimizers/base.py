"""What every optimiser provides, the registry of optimisers, and which weights decay."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from imagegpt.common.registry import Registry

if TYPE_CHECKING:  # recipes check the names of optimisers
    from imagegpt.training.recipe import TrainingRecipe


class OptimizerBuilder(ABC):
    """Builds the optimisers of a run.

    Attributes:
        name: in recipes.
        description: on the model card.
        supports_sharding: whether it can update the shards of a weight separately (FSDP).
        supports_adapters: whether it can train LoRA adapters.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    supports_sharding: ClassVar[bool] = True
    supports_adapters: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def build(cls, model: nn.Module, recipe: "TrainingRecipe") -> list[Optimizer]:
        """Build optimisers that together update every trainable weight once.

        Their state must exist from the start: for an optimiser without any, torch's checkpoints make a step of their
        own. The trainer sets the learning rate of each step.

        Args:
            model: on its device, possibly sharded.
            recipe: learning rate, betas, weight decay.
        """


OPTIMIZERS = Registry[type[OptimizerBuilder]](kind="optimizer", group="imagegpt.optimizers")
register_optimizer = OPTIMIZERS.register_class


def build_optimizers(model: nn.Module, recipe: "TrainingRecipe") -> list[Optimizer]:
    """Build the optimisers that a recipe names."""
    return OPTIMIZERS.get(recipe.optimizer).build(model, recipe)


def trainable_weights(model: nn.Module) -> Iterator[tuple[nn.Module, Tensor]]:
    """Yield each trainable weight once, with the first module that it belongs to."""
    seen = set[int]()
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            if weight.requires_grad and id(weight) not in seen:
                seen.add(id(weight))
                yield module, weight


def has_decay(module: nn.Module, weight: Tensor) -> bool:
    """Whether weight decay applies: to matrices, but not to embeddings, biases and gains."""
    return weight.ndim > 1 and not isinstance(module, nn.Embedding)
