"""Drawing images: the rules by which a pixel is drawn, and the engine that draws them."""

from imagegpt.sampling.engine import DecoderName, FinishedRow, Sampler
from imagegpt.sampling.filling import FillSchedule, fill
from imagegpt.sampling.projections import Precision, PrecisionOption
from imagegpt.sampling.rules import SamplingRules, image_seed

__all__ = [
    "DecoderName",
    "FillSchedule",
    "FinishedRow",
    "Precision",
    "PrecisionOption",
    "Sampler",
    "SamplingRules",
    "fill",
    "image_seed",
]
