"""Optimisers and learning-rate schedules, by the names that recipes give them.

In: a model and the `training` section of a recipe. Out: torch optimisers, and the learning rate of each step.

To add an optimiser, write a subclass of `OptimizerBuilder` decorated by `register_optimizer` in a file of its own, and
import it below. Another package declares its class as an entry point of the group `imagegpt.optimizers` instead.
"""

from imagegpt.training.optimizers.adamw import AdamWBuilder
from imagegpt.training.optimizers.base import OPTIMIZERS, OptimizerBuilder, build_optimizers, register_optimizer
from imagegpt.training.optimizers.muon import Muon, MuonBuilder
from imagegpt.training.optimizers.schedules import SCHEDULES, learning_rate, register_schedule

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "AdamWBuilder",
    "Muon",
    "MuonBuilder",
    "OptimizerBuilder",
    "build_optimizers",
    "learning_rate",
    "register_optimizer",
    "register_schedule",
]
