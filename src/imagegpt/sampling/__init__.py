"""Sampling images from a trained model.

Inside: the sampling rules and their noise (`rules`, `noise`), the plan that decides how a model runs (`plan`), its
packed weights (`weight_formats`, `packed_linear`), what computes a decoding step (`backends/`), the batch in progress
(`session`), the decoders (`decoders`, `parallel` with `drafting` and `draft_length`), and `sampler`, which puts them
together. `fill` samples hidden pixels from a bidirectional model.

In: a model, prompts (colour ids), one seed per image, and `SamplingRules`. Out: colour ids, (images, pixels).
"""

from imagegpt.sampling.fill import FillSchedule, fill
from imagegpt.sampling.noise import image_seed
from imagegpt.sampling.plan import BackendName, BackendOption, ExecutionPlan
from imagegpt.sampling.rules import SamplingRules
from imagegpt.sampling.sampler import DecoderName, FinishedRow, Sampler, SamplerOutput
from imagegpt.sampling.session import Session
from imagegpt.sampling.weight_formats import Precision, PrecisionOption

__all__ = [
    "BackendName",
    "BackendOption",
    "DecoderName",
    "ExecutionPlan",
    "FillSchedule",
    "FinishedRow",
    "Precision",
    "PrecisionOption",
    "Sampler",
    "SamplerOutput",
    "SamplingRules",
    "Session",
    "fill",
    "image_seed",
]
