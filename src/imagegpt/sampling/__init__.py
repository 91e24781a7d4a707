"""Drawing images: the rules by which a pixel is drawn, and the engine that draws them one after the other."""

from imagegpt.sampling.engine import Sampler
from imagegpt.sampling.rules import SamplingRules, image_seed

__all__ = ["Sampler", "SamplingRules", "image_seed"]
