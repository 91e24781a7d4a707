"""The implementations to compare: our sampler, and the `generate` of transformers' ImageGPT, over all colours."""

import importlib
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers.cache_utils import DynamicCache
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from imagegpt.checkpoints.loading import find_folder, load_config, load_model
from imagegpt.config import NAMED_SIZES, ImageGPTConfig
from imagegpt.model import cost
from imagegpt.model.cache import CACHE_ARGUMENT
from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.sampling import DecoderName, Precision, Sampler, SamplingRules
from imagegpt.sampling.packed_linear import stored_bytes
from imagegpt.sampling.plan import BackendOption
from imagegpt.sampling.session import Statistics

Source = str | ImageGPTConfig | ImageGPTForCausalImageModeling

# The only place in `src/` that imports the reference: it is measured here, no other code depends on it.
_REFERENCE = "transformers.models.imagegpt"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Runner(ABC):
    """An implementation with loaded weights.

    Attributes:
        model: ours or transformers'.
        weight_bytes: size of its weights.
    """

    model: Any
    weight_bytes: int

    @abstractmethod
    def __call__(
        self, batch: int, num_pixels: int, *, first_seed: int = 0, greedy: bool = False
    ) -> Int64[Tensor, "b t"]:
        """Sample the first pixels of a batch of images; ours use consecutive seeds from `first_seed` on."""

    @abstractmethod
    def cache_bytes(self, batch: int, num_pixels: int) -> int:
        """Size of the keys and values of a batch of images."""

    def step_bytes(self, batch: int, position: int) -> int:
        """Bytes that a step at this position must read: all weights except the embedding tables, and for each image two
        rows of these and the cached keys and values of the earlier positions.
        """
        tables = [self.model.transformer.wte.weight, self.model.transformer.wpe.weight]
        rows = sum(table[0].nbytes for table in tables)
        other_weights = self.weight_bytes - sum(table.nbytes for table in tables)
        return other_weights + batch * (rows + self.cache_bytes(1, position))


class NotComparableError(Exception):
    """transformers' ImageGPT cannot be measured with this model; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """A way to sample images.

    Attributes:
        library: "imagegpt" is our sampler, "transformers" the `generate` of its ImageGPT.
    """

    library: Literal["imagegpt", "transformers"]
    precision: str
    decoder: DecoderName = "sequential"
    backend: BackendOption = "auto"

    def __str__(self) -> str:
        return f"{self.library} {self.precision}{' parallel' if self.decoder == 'parallel' else ''}"

    def load(self, source: Source, device: str) -> Runner:
        """Load the weights.

        Args:
            source: a name as in `BenchmarkOptions`; one of our models in float32 on that device, whose weights are used
                unchanged; or a configuration, for random weights.
        Raises: ValueError if the model cannot be sampled; `NotComparableError` if transformers has no such model.
        """
        if self.library == "transformers":
            return TransformersRunner(source, self.precision, device)
        return ImageGPTRunner(self, source, device)


class ImageGPTRunner(Runner):
    """Our sampler. A model passed as the source is copied."""

    def __init__(self, implementation: Implementation, source: Source, device: str) -> None:
        self.sampler = Sampler(
            load_or_init_model(source, device),
            precision=cast(Precision, implementation.precision),
            decoder=implementation.decoder,
            backend=implementation.backend,
            in_place=not isinstance(source, ImageGPTForCausalImageModeling),
        )
        self.model = self.sampler.model
        self.weight_bytes = stored_bytes(self.model)
        self.statistics = Statistics()  # of the latest call

    def __call__(
        self, batch: int, num_pixels: int, *, first_seed: int = 0, greedy: bool = False
    ) -> Int64[Tensor, "b t"]:
        """See `Runner`."""
        seeds = range(first_seed, first_seed + batch)
        rules = SamplingRules(temperature=0.0 if greedy else 1.0)
        ids, self.statistics = self.sampler.run(None, seeds=seeds, rules=rules, num_pixels=num_pixels)
        return ids

    def cache_bytes(self, batch: int, num_pixels: int) -> int:
        """See `Runner`."""
        return batch * num_pixels * self.sampler.plan.cache_bytes_per_pixel


class TransformersRunner(Runner):
    """The `generate` of transformers' ImageGPT, with its dynamic cache. It shares the weights of a model of ours."""

    def __init__(self, source: Source, precision: str, device: str) -> None:
        self.config, self.device, self.dtype = resolve_config(source), device, DTYPES[precision]
        config_class, model_class = _reference_classes()
        model = model_class(config_class(**self.config.to_dict()))
        if isinstance(source, ImageGPTForCausalImageModeling):
            try:
                model.load_state_dict(source.state_dict(), strict=True, assign=True)  # shared, not copied
            except RuntimeError:
                raise NotComparableError(
                    "not compared: the weights of this model do not fit transformers' ImageGPT"
                ) from None
        self.model = model.to(device, self.dtype).eval()
        self.weight_bytes = sum(tensor.nbytes for tensor in self.model.parameters())

    def __call__(
        self,
        batch: int,
        num_pixels: int,
        *,
        first_seed: int = 0,  # ignored: transformers uses torch's global generator
        greedy: bool = False,
    ) -> Int64[Tensor, "b t"]:
        """See `Runner`."""
        sos = torch.full((batch, 1), self.config.sos_token_id, device=self.device)
        return self._generate(sos, num_pixels, greedy=greedy)[:, 1:]

    def step_s(self, batch: int, start: int, num_steps: int) -> float:
        """Seconds per step for `num_steps` pixels after the first `start` of each image.

        The cache of the earlier pixels is filled with a constant instead of sampling them.
        """
        cache = DynamicCache(config=self.config)
        shape = (batch, self.config.n_head, start, self.config.n_embd // self.config.n_head)
        for layer in range(self.config.n_layer if start else 0):
            keys, values = (torch.full(shape, 0.01, dtype=self.dtype, device=self.device) for _ in range(2))
            cache.update(keys, values, layer)
        tokens = torch.zeros(batch, start + 1, dtype=torch.int64, device=self.device)
        tokens[:, 0] = self.config.sos_token_id
        timer = _StepTimer()
        options: dict[str, Any] = {CACHE_ARGUMENT: cache, "stopping_criteria": StoppingCriteriaList([timer])}
        self._generate(tokens, num_steps + 1, **options)
        return (timer.times[-1] - timer.times[0]) / num_steps

    def cache_bytes(self, batch: int, num_pixels: int) -> int:
        """See `Runner`."""
        return batch * num_pixels * cost.cache_bytes_per_pixel(self.config, self.dtype.itemsize)

    def _generate(self, tokens: Tensor, num_pixels: int, greedy: bool = False, **options: Any) -> Tensor:
        rules = {} if greedy else {"top_k": 0}  # no limit: the default of transformers is 50
        return self.model.generate(tokens, max_new_tokens=num_pixels, do_sample=not greedy, **rules, **options)


class _StepTimer(StoppingCriteria):
    """Records the time after each step of `generate`; never stops it."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """See transformers."""
        if input_ids.is_cuda:
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def resolve_config(source: Source) -> ImageGPTConfig:
    """The configuration of a model, without loading its weights."""
    if isinstance(source, ImageGPTForCausalImageModeling):
        return source.config
    if isinstance(source, ImageGPTConfig):
        return source
    if source in NAMED_SIZES:
        return ImageGPTConfig.from_size(source)
    return load_config(find_folder(source, weights=False))


def load_or_init_model(source: Source, device: str) -> ImageGPTForCausalImageModeling:
    """Load a model of ours in float32; for a size or a configuration, initialise random weights with seed 0."""
    if isinstance(source, ImageGPTForCausalImageModeling):
        return source
    if isinstance(source, str) and source not in NAMED_SIZES:
        return load_model(find_folder(source), device=device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ImageGPTForCausalImageModeling(resolve_config(source))
    return cast(Any, model).to(device).eval()


def greedy_pixels_match(runners: Sequence[Runner], num_pixels: int) -> bool:
    """Whether all produce the same greedy pixels."""
    first, *others = (runner(1, num_pixels, greedy=True) for runner in runners)
    return all(torch.equal(first, other) for other in others)


def _reference_classes() -> tuple[Any, Any]:
    try:
        module = importlib.import_module(_REFERENCE)
        return module.ImageGPTConfig, module.ImageGPTForCausalImageModeling
    except (ImportError, AttributeError):
        raise NotComparableError("not compared: this version of transformers has no ImageGPT") from None
