"""Recipes: everything that decides what a training run does, in frozen dataclasses; `recipe_io` reads them from YAML.

Unknown keys, values of the wrong type, values out of range and contradictions are refused in one sentence that names
the fields. `Recipe.to_yaml` spells out every default; a run writes it beside the model.
"""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, PlainSerializer, PlainValidator, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from imagegpt.common import ranges
from imagegpt.common.pydantic_ranges import InRange
from imagegpt.common.registry import Registry
from imagegpt.data.recipe import DataRecipe
from imagegpt.files.versions import FORMAT_KEY
from imagegpt.training.objectives import OBJECTIVES, Autoregressive, Objective
from imagegpt.training.optimizers import OPTIMIZERS, SCHEDULES
from imagegpt.training.recipe_fields import (
    STRICT,
    AttentionName,
    BatchSize,
    Decay,
    PrecisionName,
    Steps,
    describe_validation_error,
)
from imagegpt.training.recipe_model import ModelRecipe

RECIPE_FORMAT = 2  # of recipe.yaml, and with it of the folder of a run


def _registered(registry: Registry[Any]) -> AfterValidator:
    """A validator for the names in a registry."""

    def check(name: str) -> str:
        names = registry.names()
        if name not in names:
            raise ValueError(f"it must be {', '.join(map(repr, names[:-1]))} or {names[-1]!r}")
        registry.get(name)  # a package that provides it must be importable
        return name

    return AfterValidator(check)


def _parse_objective(value: Any) -> Objective:
    """Build an objective from its section of a recipe: `name`, and the options of the class of that name."""
    if isinstance(value, Objective):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"objective is {value!r}: it must be a section with name and options")  # noqa: TRY004
    options = {name: option for name, option in value.items() if name != "name"}
    name = value.get("name", Autoregressive.name)
    if name not in OBJECTIVES.names():
        names = [repr(known) for known in OBJECTIVES.names()]
        raise ValueError(f"objective.name is {name!r}: it must be {', '.join(names[:-1])} or {names[-1]}")
    objective: Any = OBJECTIVES.get(name)
    try:
        return TypeAdapter(objective).validate_python(options)
    except ValidationError as error:
        fields = ["name", *(field.name for field in dataclasses.fields(objective))]
        raise ValueError(
            describe_validation_error(error, f"objective {name!r}", lambda _: fields, "objective")
        ) from None


def _dump_objective(objective: Objective) -> dict[str, Any]:
    kind: Any = type(objective)
    return {"name": objective.name, **TypeAdapter(kind).dump_python(objective, mode="json")}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainingRecipe:
    """How the weights are updated. The defaults are the paper's, or suit small data sets.

    Args:
        num_steps: number of updates. It may grow when a run is resumed, even a completed one; see
            `optimizers.learning_rate`.
        batch_size: images per step, over all processes.
        micro_batch_size: images per forward pass of a process; gradients are accumulated. None is the process's whole
            batch.
        optimizer: "adamw" as in the paper; "muon" updates the projections by Muon and everything else by AdamW, which
            learns more from few images; or one that another package registers.
        learning_rate: the maximum, after the warm-up.
        warmup_steps: over which the learning rate rises linearly.
        schedule: of the learning rate after the warm-up: "cosine" down to 0 (the paper), or "constant".
        beta1: of AdamW.
        beta2: of AdamW; the paper saw loss spikes at 0.999.
        weight_decay: of matrices; embeddings, biases and gains do not decay. The paper has none.
        max_grad_norm: longer gradients are clipped to this norm.
        ema_decay: of an exponential moving average of the weights, per step. The averaged weights are validated and
            saved. None averages nothing.
        precision: of matrix products; weights and sums stay in float32. "auto" is bfloat16 where the device has fast
            bfloat16 instructions, else float32; see `imagegpt.common.precision`.
        compile: compile the blocks.
        gradient_checkpointing: recompute the activations of a block in the backward pass: a third more time, half the
            memory for activations.
        attention: transformers' name of an implementation, or "kernels": our own on CPUs, else sdpa.
        parallel: with several processes: replicate the weights ("ddp") or shard them ("fsdp").
        seed: of the initial weights, the order of the images, augmentation, masks and dropout.
    """

    num_steps: Steps
    batch_size: BatchSize = 128
    micro_batch_size: BatchSize | None = None
    optimizer: Annotated[str, _registered(OPTIMIZERS)] = "adamw"
    learning_rate: Annotated[float, InRange(ranges.LEARNING_RATE)] = 0.003
    warmup_steps: Annotated[int, InRange(ranges.WARMUP_STEPS)] = 100
    schedule: Annotated[str, _registered(SCHEDULES)] = "cosine"
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    weight_decay: Annotated[float, InRange(ranges.WEIGHT_DECAY)] = 0.01
    max_grad_norm: Annotated[float, InRange(ranges.GRADIENT_NORM)] = 1.0
    ema_decay: Decay | None = None
    precision: PrecisionName = "auto"
    compile: bool = False
    gradient_checkpointing: bool = False
    attention: AttentionName = "kernels"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    seed: Annotated[int, InRange(ranges.TRAINING_SEED)] = 0

    def __post_init__(self) -> None:
        if self.warmup_steps >= self.num_steps and self.warmup_steps:
            raise ValueError(
                f"training.warmup_steps is {self.warmup_steps} and training.num_steps {self.num_steps}: "
                "the warm-up must be shorter than the run"
            )
        if self.parallel == "fsdp" and not OPTIMIZERS.get(self.optimizer).supports_sharding:
            raise ValueError(
                f"training.optimizer is {self.optimizer!r} and training.parallel 'fsdp': it needs unsharded weights, "
                "choose ddp or another optimizer"
            )
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"training.batch_size is {self.batch_size}, which training.micro_batch_size = {self.micro_batch_size} "
                "does not divide: choose a divisor"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MonitoringRecipe:
    """Validation, checkpoints and logging.

    Args:
        validate_every: steps between validations.
        validation_images: size of a random subset to validate with, the same at each validation; None validates with
            all images.
        patience: end the run after this many validations without an improvement; None never ends it early.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: how many of the newest to keep; with two, a damaged one does no harm.
        spike_nats: roll back to the last checkpoint, and continue with other images, when the loss exceeds the mean of
            the last 100 steps by this much, or loss or gradients are not finite. None never rolls back: a loss or
            gradients that are not finite end the run.
        max_rollbacks: end the run after this many rollbacks.
        samples: images to sample at each validation; 0 samples none.
        trackers: where to log metrics besides log.jsonl: tensorboard, wandb, mlflow and others that accelerate knows,
            or one that another package registers.
    """

    validate_every: Steps = 100
    validation_images: Annotated[int, InRange(ranges.DATASET_SIZE)] | None = None
    patience: Annotated[int, InRange(ranges.VALIDATIONS)] | None = None
    checkpoint_every: Steps = 500
    keep_checkpoints: Annotated[int, InRange(ranges.CHECKPOINTS)] = 2
    spike_nats: Annotated[float, InRange(ranges.NATS)] | None = None
    max_rollbacks: Annotated[int, InRange(ranges.ROLLBACKS)] = 5
    samples: Annotated[int, InRange(ranges.SHEET_SAMPLES)] = 16
    trackers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CardRecipe:
    """Texts for the model card that cannot be computed. None uses a general text.

    Args:
        title: of the card.
        description: what the model is and what it is for; `imagegpt models` shows its first sentence.
        data: where the images come from, and their licence.
        license: of the weights.
    """

    title: str | None = None
    description: str | None = None
    data: str | None = None
    license: str | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """A training run. `objective` names a class of `imagegpt.training.objectives` and sets its options."""

    model: ModelRecipe
    data: DataRecipe
    training: TrainingRecipe
    objective: Annotated[Objective, PlainValidator(_parse_objective), PlainSerializer(_dump_objective)] = (
        Autoregressive()
    )
    monitoring: MonitoringRecipe = MonitoringRecipe()
    card: CardRecipe = CardRecipe()

    def __post_init__(self) -> None:
        optimizer = self.training.optimizer
        if self.model.lora_rank and not OPTIMIZERS.get(optimizer).supports_adapters:
            raise ValueError(
                f"model.lora_rank is {self.model.lora_rank} and training.optimizer {optimizer!r}: it cannot train "
                "adapters, choose adamw"
            )
        if self.model.shift_inputs and not (self.objective.needs_labels and self.objective.is_causal):
            raise ValueError(
                f"model.shift_inputs is true and objective.name is {self.objective.name!r}: it is for causal "
                "classifiers ('joint' and 'classification') only, drop it"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the sections as nested dictionaries of plain values, every default included."""
        return TypeAdapter(Recipe).dump_python(self, mode="json")

    def flatten(self) -> dict[str, Any]:
        """Return all fields by their names on the command line, such as "data.split.seed"."""
        return dict(_flatten(self.to_dict()))

    def to_yaml(self) -> str:
        """Return the recipe as YAML, every default included; reading it gives an equal recipe."""
        return yaml.safe_dump({FORMAT_KEY: RECIPE_FORMAT, **self.to_dict()}, sort_keys=False)


def _flatten(fields: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
