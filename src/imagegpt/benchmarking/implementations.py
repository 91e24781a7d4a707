"""Who is measured: our sampler and the `generate` of transformers' ImageGPT, both drawing from all colours."""

import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers.cache_utils import DynamicCache
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from imagegpt.checkpoints.loading import find_folder, load_config, load_model
from imagegpt.config import NAMED_SIZES, ImageGPTConfig
from imagegpt.model import cost
from imagegpt.model.cache_names import CACHE
from imagegpt.model.layers import ImageGPTLayerNorm
from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.sampling import DecoderName, Precision, Sampler, SamplingRules
from imagegpt.sampling.packed_linear import stored_bytes
from imagegpt.sampling.plan import BackendOption
from imagegpt.sampling.session import Statistics

Source = str | ImageGPTConfig | ImageGPTForCausalImageModeling

# The one place in `src/` that looks at the reference, by its name: it is measured here, nothing is built upon it.
_REFERENCE = "transformers.models.imagegpt"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Draw(Protocol):
    """A contestant with its weights, ready to draw."""

    weight_bytes: int

    def __call__(
        self, batch: int, num_pixels: int, *, first_seed: int = 0, greedy: bool = False
    ) -> Int64[Tensor, "b t"]:
        """Draw the first pixels of that many images; ours have the seeds from `first_seed` on."""
        ...

    def cache_bytes(self, batch: int, num_pixels: int) -> int:
        """Size of keys and values when such images are drawn."""
        ...

    def step_bytes(self, batch: int, position: int) -> int:
        """What must be read to draw a pixel of each image: all weights but the embeddings once, and for each image two
        rows of these and what the `position` pixels before left in the cache.
        """
        ...


class NotComparableError(Exception):
    """Why transformers' ImageGPT cannot be measured beside a model, in one sentence."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way to draw.

    Attributes:
        who: "imagegpt" is our sampler, "transformers" its ImageGPT's `generate`.
        precision: of the weights.
        decoder: of our sampler; transformers has but one.
        backend: of our sampler.
    """

    who: Literal["imagegpt", "transformers"]
    precision: str
    decoder: DecoderName = "sequential"
    backend: BackendOption = "auto"

    def __str__(self) -> str:
        return f"{self.who} {self.precision}{' parallel' if self.decoder == 'parallel' else ''}"

    def make(self, source: Source, device: str) -> Draw:
        """Get ready to draw.

        Args:
            source: a name as in `BenchOptions`, a model of ours in float32 on that device, whose weights are used as
                they are, or a configuration, for random weights.
            device: where to.
        Raises: ValueError if the model cannot draw; `NotComparableError` if transformers has no such model.
        """
        return (
            TheirDraw(source, self.precision, device) if self.who == "transformers" else OurDraw(self, source, device)
        )


class OurDraw:
    """Our sampler, with one set of weights; a model that was given stays as it is, and is copied."""

    def __init__(self, contestant: Contestant, source: Source, device: str) -> None:
        self.sampler = Sampler(
            model_of(source, torch.float32, device),
            precision=cast(Precision, contestant.precision),
            decoder=contestant.decoder,
            backend=contestant.backend,
            in_place=not isinstance(source, ImageGPTForCausalImageModeling),
        )
        self.weight_bytes = stored_bytes(self.sampler.model)
        self.statistics = Statistics()  # of the latest images

    def __call__(
        self, batch: int, num_pixels: int, *, first_seed: int = 0, greedy: bool = False
    ) -> Int64[Tensor, "b t"]:
        """See `Draw`."""
        seeds = range(first_seed, first_seed + batch)
        rules = SamplingRules(temperature=0.0 if greedy else 1.0)
        ids, self.statistics = self.sampler.run(None, seeds=seeds, rules=rules, num_pixels=num_pixels)
        return ids

    def cache_bytes(self, batch: int, num_pixels: int) -> int:
        """See `Draw`."""
        return batch * num_pixels * self.sampler.plan.cache_bytes_per_pixel

    def step_bytes(self, batch: int, position: int) -> int:
        """See `Draw`."""
        cached = position * self.sampler.plan.cache_bytes_per_pixel
        return _step_bytes(self.sampler.model, self.weight_bytes, batch, cached)


class TheirDraw:
    """transformers' ImageGPT and its `generate`, with its dynamic cache; a model of ours that was given shares its
    weights.
    """

    def __init__(self, source: Source, precision: str, device: str) -> None:
        self.config, self.device, self.dtype = config_of(source), device, DTYPES[precision]
        config_class, model_class = _reference_classes()
        model = model_class(config_class(**self.config.to_dict()))
        if isinstance(source, ImageGPTForCausalImageModeling):
            try:
                model.load_state_dict(source.state_dict(), strict=True, assign=True)  # shared, not copied
            except RuntimeError:
                raise NotComparableError(
                    "transformers' ImageGPT has other weights than this model: not compared"
                ) from None
        self.model: Any = model.to(device, self.dtype).eval()
        self.weight_bytes = sum(tensor.nbytes for tensor in self.model.parameters())

    def __call__(
        self,
        batch: int,
        num_pixels: int,
        *,
        first_seed: int = 0,  # torch has its own generator
        greedy: bool = False,
    ) -> Int64[Tensor, "b t"]:
        """See `Draw`."""
        sos = torch.full((batch, 1), self.config.sos_token_id, device=self.device)
        return self._generate(sos, num_pixels, greedy=greedy)[:, 1:]

    def step_s(self, batch: int, start: int, num_steps: int) -> float:
        """Time of a step while it draws the pixels after the first `start` of each image.

        What `generate` needs before is not drawn but put there, as a cache full of one number, and not timed.
        """
        cache = DynamicCache(config=self.config)
        shape = (batch, self.config.n_head, start, self.config.n_embd // self.config.n_head)
        for layer in range(self.config.n_layer if start else 0):
            keys, values = (torch.full(shape, 0.01, dtype=self.dtype, device=self.device) for _ in range(2))
            cache.update(keys, values, layer)
        tokens = torch.zeros(batch, start + 1, dtype=torch.int64, device=self.device)
        tokens[:, 0] = self.config.sos_token_id
        watch = _Stopwatch()
        more: dict[str, Any] = {CACHE: cache, "stopping_criteria": StoppingCriteriaList([watch])}
        self._generate(tokens, num_steps + 1, **more)
        return (watch.times[-1] - watch.times[0]) / num_steps

    def cache_bytes(self, batch: int, num_pixels: int) -> int:
        """See `Draw`."""
        return batch * num_pixels * cost.cache_bytes_per_pixel(self.config, self.dtype.itemsize)

    def step_bytes(self, batch: int, position: int) -> int:
        """See `Draw`."""
        return _step_bytes(self.model, self.weight_bytes, batch, self.cache_bytes(1, position))

    def _generate(self, tokens: Tensor, num_pixels: int, greedy: bool = False, **more: Any) -> Tensor:
        how = {} if greedy else {"top_k": 0}  # of all colours: transformers' own default is the best 50
        return self.model.generate(tokens, max_new_tokens=num_pixels, do_sample=not greedy, **how, **more)


class _Stopwatch(StoppingCriteria):
    """Notes the time after each step of `generate`, and stops nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """See transformers."""
        if input_ids.is_cuda:
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _step_bytes(model: Any, weight_bytes: int, batch: int, cached_bytes: int) -> int:
    """See `Draw.step_bytes`: by the tensors that are there, whatever their layout and precision."""
    embeddings = [model.transformer.wte.weight, model.transformer.wpe.weight]
    rows = sum(table[0].nbytes for table in embeddings)
    return weight_bytes - sum(table.nbytes for table in embeddings) + batch * (rows + cached_bytes)


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


def same_greedy_pixels(draws: Sequence[Draw], num_pixels: int) -> bool:
    """Whether all draw the same likeliest pixels, as they must if they do the same work."""
    first, *others = (draw(1, num_pixels, greedy=True) for draw in draws)
    return all(torch.equal(first, other) for other in others)


def _reference_classes() -> tuple[Any, Any]:
    try:
        module = importlib.import_module(_REFERENCE)
        return module.ImageGPTConfig, module.ImageGPTForCausalImageModeling
    except (ImportError, AttributeError):
        raise NotComparableError("transformers has no ImageGPT: not compared") from None
