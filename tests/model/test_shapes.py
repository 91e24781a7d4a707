"""The axes in signatures are correct: public functions run with jaxtyping and beartype enabled.

In a subprocess, because the import hook must be installed before the imports. Not for all tests: with invalid inputs
the hook would raise before our own checks. Models are excluded, because checked calls do not compile.
"""

import textwrap
from pathlib import Path

import pytest

WATCHED = [
    "imagegpt.images.palette",
    "imagegpt.images.palette_checks",
    "imagegpt.images.palette_fitting",
    "imagegpt.images.reading",
    "imagegpt.images.color_conversion",
    "imagegpt.sampling.noise",
    "imagegpt.sampling.rules",
    "imagegpt.sampling.backends.base",
    "imagegpt.sampling.backends.cpp",
    "imagegpt.sampling.drafting",
    "imagegpt.sampling.parallel",
    "imagegpt.sampling.sampler",
    "imagegpt.sampling.session",
    "imagegpt.sampling.backends.pytorch",
    "imagegpt.evaluation.likelihood",
    "imagegpt.evaluation.baselines",
    "imagegpt.training.objectives",
    "imagegpt.data.sources.digits",
]

PREAMBLE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import jaxtyping
jaxtyping.install_import_hook({WATCHED!r}, "typechecking.check")
import numpy as np
import torch
from PIL import Image
from helpers import tiny_config, tiny_model
from imagegpt import ColorPalette, ImageGPTImageProcessor
from imagegpt.evaluation.baselines import NeighbourModel, PositionHistogram
from imagegpt.evaluation.likelihood import mean_nll, pixel_nll
from imagegpt.sampling import Sampler, SamplingRules
from imagegpt.sampling.noise import gumbel_noise, seed_tensor
from imagegpt.sampling.rules import filter_logits, sample_colors
from imagegpt.data.sources.digits import load_digits
from imagegpt.model.losses import autoregressive_loss
"""


@pytest.fixture
def run(forkserver):
    return lambda code: forkserver.run(["-c", PREAMBLE + textwrap.dedent(code)])


def test_signatures_match_arguments(run):
    done = run(
        """
        pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
        for grey in (False, True):
            palette = ColorPalette.fit(pixels, 16, grey=grey)
            assert palette.decode(palette.encode(pixels)).shape == pixels.shape
            palette.report(pixels)
            processor = ImageGPTImageProcessor(palette, size=4)
            ids = processor([Image.fromarray(pixels[0]), pixels[1]], return_tensors="pt")["input_ids"]
            processor.decode(ids)

        model = tiny_model()
        for rules in (SamplingRules(), SamplingRules(temperature=0.5, top_k=3, top_p=0.9, min_p=0.01)):
            for backend in ("cpp", "torch"):
                for decoder in ("sequential", "parallel"):
                    sampler = Sampler(model, backend=backend, decoder=decoder)
                    images = sampler.generate(ids[:, :5], seeds=[1, 2**63 + 1], rules=rules)
                    sampler.generate(None, seeds=[1, 2, 3], rules=rules)
        assert len(list(sampler.stream(seeds=[1, 2]))) == 4
        pixel_nll(model, images)
        mean_nll(model, images)
        autoregressive_loss(model, images)

        train, validation = (load_digits()[split].levels.astype(np.int64) for split in ("train", "validation"))
        NeighbourModel(train, validation, num_colors=17, side=8).pixel_nll(validation)
        PositionHistogram(train, validation, num_colors=17).pixel_nll(validation)
        """
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_wrong_shape_is_detected(run):
    done = run("sample_colors(torch.zeros(2, 5), torch.zeros(3, 5), SamplingRules())")
    assert done.returncode != 0
    assert "TypeCheckError" in done.stderr
