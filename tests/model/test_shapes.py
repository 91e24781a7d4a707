"""The axes in the signatures are true: a run through the public functions with jaxtyping and beartype watching.

In a process of its own, because the import hook must come before the imports. Not over all tests: where one gives a
wrong input, the hook would speak before our own error does. Models are left out, since checked calls do not compile.
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
from imagegpt.sampling.rules import draw, filter_logits, gumbel_noise, seed_tensor
from imagegpt.data.sources.digits import load_digits
from imagegpt.training.objectives import autoregressive_loss
"""


@pytest.fixture
def run(forkserver):
    return lambda code: forkserver.run(["-c", PREAMBLE + textwrap.dedent(code)])


def test_the_signatures_hold(run):
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

        data = load_digits()
        train, validation = data.train.ids.numpy(), data.validation.ids.numpy()
        NeighbourModel.fit(train, validation, num_colors=17, side=8).pixel_nll(validation)
        PositionHistogram.fit(train, validation, num_colors=17).pixel_nll(validation)
        """
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_wrong_shape_is_noticed(run):
    done = run("draw(torch.zeros(2, 5), torch.zeros(3, 5), SamplingRules())")
    assert done.returncode != 0
    assert "TypeCheckError" in done.stderr
