"""Training objectives; a recipe's `objective` section names one and sets its options.

In: a model and a `Batch`. Out: the loss with its metrics, and at the end of a run the scores of the best model.

To add an objective, write a subclass of `Objective` decorated by `register_objective` in a file of its own, and import
it below. Another package declares its class as an entry point of the group `imagegpt.objectives` instead.
"""

from imagegpt.training.objectives.autoregressive import Autoregressive
from imagegpt.training.objectives.base import (
    OBJECTIVES,
    FinalScores,
    Losses,
    ModelWithObjective,
    Objective,
    register_objective,
)
from imagegpt.training.objectives.bert import Bert
from imagegpt.training.objectives.classification import Classification
from imagegpt.training.objectives.joint import ImageGPTWithBothHeads, Joint, JointBert

__all__ = [
    "OBJECTIVES",
    "Autoregressive",
    "Bert",
    "Classification",
    "FinalScores",
    "ImageGPTWithBothHeads",
    "Joint",
    "JointBert",
    "Losses",
    "ModelWithObjective",
    "Objective",
    "register_objective",
]
