"""Who is measured: our sampler and the `generate` of transformers' ImageGPT, both drawing from all colours."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from imagegpt.checkpoints.loading import find_folder, load_config, load_model
from imagegpt.config import NAMED_SIZES, ImageGPTConfig
from imagegpt.model.layers import ImageGPTLayerNorm
from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.sampling import Precision, Sampler, SamplingRules

# Draws that many images up to that pixel.
Draw = Callable[[int, int], Any]
Source = str | ImageGPTConfig | ImageGPTForCausalImageModeling

# The one place in `src/` that looks at the reference, by its name: it is measured here, nothing is built upon it.
_REFERENCE = "transformers.models.imagegpt"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class NotComparableError(Exception):
    """Why transformers' ImageGPT cannot be measured beside a model, in one sentence."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way to draw.

    Attributes:
        who: "imagegpt" is our sampler, "transformers" its ImageGPT's `generate`.
        precision: of the weights.
    """

    who: Literal["imagegpt", "transformers"]
    precision: str

    def __str__(self) -> str:
        return f"{self.who} {self.precision}"

    def make(self, source: Source, device: str) -> Draw:
        """Get ready to draw.

        Args:
            source: a name as in `BenchOptions`, a model of ours in float32 on that device, whose weights are used as
                they are, or a configuration, for random weights.
            device: where to.
        Raises: ValueError if the model cannot draw; `NotComparableError` if transformers has no such model.
        """
        if self.who == "transformers":
            return _their_draw(source, self.precision, device)
        sampler = _sampler(source, self.precision, device)
        return lambda batch, pixels: sampler.generate(None, seeds=range(batch), num_pixels=pixels)


def config_of(source: Source) -> ImageGPTConfig:
    """The architecture of a model; of one on the hub, without its weights."""
    if isinstance(source, ImageGPTForCausalImageModeling):
        return source.config
    if isinstance(source, ImageGPTConfig):
        return source
    if source in NAMED_SIZES:
        return ImageGPTConfig.from_size(source)
    return load_config(find_folder(source, weights=False))


def model_of(source: Source, dtype: torch.dtype, device: str) -> ImageGPTForCausalImageModeling:
    """A model of ours for evaluation; random weights, for a size or a configuration, are those of seed 0."""
    if isinstance(source, ImageGPTForCausalImageModeling) and source.dtype == dtype:
        return source
    if isinstance(source, str) and source not in NAMED_SIZES:
        return load_model(find_folder(source), dtype=dtype, device=device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ImageGPTForCausalImageModeling(config_of(source))
    if isinstance(source, ImageGPTForCausalImageModeling):
        model.load_state_dict(source.state_dict())
    model = cast(Any, model).to(device, dtype).eval()
    for module in model.modules():
        if isinstance(module, ImageGPTLayerNorm):
            module.to(torch.promote_types(dtype, torch.float32))  # as `from_pretrained` leaves them
    return model


def same_greedy_pixels(model: ImageGPTForCausalImageModeling, theirs: Draw, num_pixels: int) -> bool:
    """Whether both libraries draw the same likeliest pixels, as they must if they do the same work."""
    ours = Sampler(model).generate(None, seeds=[0], rules=SamplingRules(temperature=0.0), num_pixels=num_pixels)
    return torch.equal(ours, cast(Any, theirs)(1, num_pixels, do_sample=False))


def _sampler(source: Source, precision: str, device: str) -> Sampler:
    """Our sampler, with one set of weights; a model that was given stays as it is, and is copied."""
    in_place = not isinstance(source, ImageGPTForCausalImageModeling)
    return Sampler(model_of(source, torch.float32, device), precision=cast(Precision, precision), in_place=in_place)


def _their_draw(source: Source, precision: str, device: str) -> Draw:
    config = config_of(source)
    config_class, model_class = _reference_classes()
    model = model_class(config_class(**config.to_dict()))
    if isinstance(source, ImageGPTForCausalImageModeling):
        try:
            model.load_state_dict(source.state_dict(), strict=True, assign=True)  # shared, not copied
        except RuntimeError:
            raise NotComparableError("transformers' ImageGPT has other weights than this model: not compared") from None
    model = model.to(device, DTYPES[precision]).eval()

    def draw(batch: int, pixels: int, do_sample: bool = True) -> Tensor:
        sos = torch.full((batch, 1), config.sos_token_id, device=device)
        how = {"top_k": 0} if do_sample else {}  # of all colours: transformers' own default is the best 50
        return model.generate(sos, max_new_tokens=pixels, do_sample=do_sample, **how)[:, 1:]

    return draw


def _reference_classes() -> tuple[Any, Any]:
    try:
        module = importlib.import_module(_REFERENCE)
        return module.ImageGPTConfig, module.ImageGPTForCausalImageModeling
    except (ImportError, AttributeError):
        raise NotComparableError("transformers has no ImageGPT: not compared") from None
