"""Sampling: the rules by which a pixel is drawn, and what computes it."""

from imagegpt.sampling.fill import FillSchedule, fill
from imagegpt.sampling.plan import BackendName, BackendOption, ExecutionPlan
from imagegpt.sampling.rules import SamplingRules, image_seed
from imagegpt.sampling.sampler import DecoderName, FinishedRow, Generation, Sampler
from imagegpt.sampling.session import Session
from imagegpt.sampling.weight_formats import Precision, PrecisionOption

__all__ = [
    "BackendName",
    "BackendOption",
    "DecoderName",
    "ExecutionPlan",
    "FillSchedule",
    "FinishedRow",
    "Generation",
    "Precision",
    "PrecisionOption",
    "Sampler",
    "SamplingRules",
    "Session",
    "fill",
    "image_seed",
]
