"""Recipes: everything that decides what a training run does, in frozen dataclasses. `reading` makes them of YAML.

Unknown keys, values of the wrong kind, impossible sizes and contradictions are refused in one sentence that names the
fields. `resolved` is the recipe with every default spelt out, which is written beside what was trained.
"""

from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from imagegpt.common import ranges
from imagegpt.common.number_fields import Within
from imagegpt.config import NAMED_SIZES, ImageGPTConfig
from imagegpt.data.broken_images import MAX_BROKEN
from imagegpt.files.versions import FORMAT_KEY

RECIPE_FORMAT = 1  # of recipe.yaml, and with it of the folder of a run

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

Dropout = Annotated[float, Within(ranges.DROPOUT)]
Probability = Annotated[float, Within(ranges.PROBABILITY)]
Images = Annotated[int, Within(ranges.BATCH)]
Steps = Annotated[int, Within(ranges.STEPS)]
Decay = Annotated[float, Within(ranges.DECAY)]

ObjectiveName = Literal["autoregressive", "bert", "joint", "joint-bert", "classification"]
PrecisionField = Literal["auto", "float32", "bfloat16"]
AugmentationName = Literal["none", "flip", "reflect-crop-flip", "random-resized-crop"]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ModelRecipe:
    """The architecture. Colours and pixels are those of the data.

    Args:
        size: one of the paper's, instead of `n_layer`, `n_embd` and `n_head`.
        n_layer: blocks.
        n_embd: width.
        n_head: attention heads.
        pretrained: a model to go on from (its name or folder), instead of all of the above.
        change_attention: go on with a causal model as a bidirectional one, or the other way, where the objective needs
            that; otherwise such a model is refused, because its weights were learnt for something else.
        shift_inputs: a causal classifier reads the start token and all pixels but the last, as in pre-training (the
            paper), and transformers cannot load it; False reads the pixels as they come, as transformers does.
        lora_rank: of adapters that are trained in place of a pretrained model's weights, by peft; 0 trains the weights.
        resid_pdrop: dropout on what is added to the stream; the paper has none, as for the next two.
        embd_pdrop: dropout on the embeddings.
        attn_pdrop: dropout on the attention weights.
        use_bias: biases in the projections, as transformers wants them; the paper has none.
        init_scheme: how fresh weights are drawn; "openai" starts at a loss of ln V exactly.
        embeddings: how those of colours and positions start: "random" as in the paper, or as "waves" of the colour, of
            the row and of the column (`imagegpt.model.sinusoidal_init`), which takes far fewer images.
    """

    size: str | None = None
    n_layer: Annotated[int, Within(ranges.LAYERS)] | None = None
    n_embd: Annotated[int, Within(ranges.WIDTH)] | None = None
    n_head: Annotated[int, Within(ranges.HEADS)] | None = None
    pretrained: str | None = None
    change_attention: bool = False
    shift_inputs: bool = False
    lora_rank: Annotated[int, Within(ranges.LORA_RANK_OR_NONE)] = 0
    resid_pdrop: Dropout = 0.0
    embd_pdrop: Dropout = 0.0
    attn_pdrop: Dropout = 0.0
    use_bias: bool = False
    init_scheme: Literal["openai", "transformers"] = "openai"
    embeddings: Literal["random", "waves"] = "random"

    def __post_init__(self) -> None:
        shape = {name: getattr(self, name) for name in ("n_layer", "n_embd", "n_head")}
        given = [name for name, value in shape.items() if value is not None]
        if self.pretrained is not None and (self.size is not None or given):
            other = "size" if self.size is not None else given[0]
            raise ValueError(f"model.pretrained and model.{other} were both given: the shape is the model's, drop one")
        if self.pretrained is not None:
            if self.embeddings != "random":
                raise ValueError(
                    f"model.pretrained and model.embeddings = {self.embeddings!r} were both given: the embeddings are "
                    "the model's, drop one"
                )
            return
        if self.change_attention:
            raise ValueError(
                "model.change_attention is true and model.pretrained is missing: fresh weights have learnt no kind of "
                "attention, give a model or drop it"
            )
        if self.lora_rank:
            raise ValueError(
                f"model.lora_rank is {self.lora_rank} and model.pretrained is missing: adapters stand beside weights "
                "that are good already, give a model or drop the rank"
            )
        if self.size is not None and given:
            raise ValueError(f"model.size and model.{given[0]} were both given: give the size, or the numbers")
        if self.size is None and len(given) < len(shape):
            missing = next(name for name in shape if name not in given)
            raise ValueError(f"model.{missing} is missing: give n_layer, n_embd and n_head, or a size")
        if self.size is not None and self.size not in NAMED_SIZES:
            raise ValueError(f"model.size is {self.size!r}: choose one of {', '.join(NAMED_SIZES)}")
        if self.n_embd is not None and self.n_head is not None and self.n_embd % self.n_head:
            raise ValueError(
                f"model.n_embd is {self.n_embd}, which model.n_head = {self.n_head} does not divide: "
                "choose a width that is a multiple of the number of heads"
            )

    def config(self, *, num_colors: int, num_pixels: int, is_causal: bool, **others: Any) -> ImageGPTConfig:
        """The configuration of a new model for such images."""
        assert self.pretrained is None, "a pretrained model has its own configuration"
        own = {"n_layer": self.n_layer, "n_embd": self.n_embd, "n_head": self.n_head}
        shape = own if self.size is None else {name: NAMED_SIZES[self.size][name] for name in own}
        return ImageGPTConfig(
            vocab_size=num_colors + 1, n_positions=num_pixels, is_causal=is_causal, **shape, **self.options(), **others
        )

    def options(self) -> dict[str, Any]:
        """The fields that are a configuration's, shape left out."""
        names = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "use_bias", "init_scheme")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SplitRecipe:
    """Which images are held out, where the source has no parts for that: by a hash of their pixels.

    Args:
        seed: of the split; that of the training has no part in it.
        validation: the share of the images to expect in the validation part, where the source has none.
        test: the same for the test part; 0 makes none.
    """

    seed: Annotated[int, Within(ranges.TRAINING_SEED)] = 0
    validation: Annotated[float, Within(ranges.PART)] = 0.04
    test: Annotated[float, Within(ranges.SHARE)] = 0.0

    def __post_init__(self) -> None:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"data.split.validation is {self.validation} and data.split.test {self.test}: together they must be "
                "less than 1"
            )


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DataRecipe:
    """The images.

    Args:
        train: "digits", a folder that `imagegpt encode` made, or images of any kind it reads.
        validation: the same, for images to watch; None sets some of `train` aside.
        test: the same, for the number that is reported in the end; None reports none.
        split: how some are set aside.
        augmentation: what is done to training images on the fly.
        palette: an .npy file, a folder or a model, for images that are not encoded.
        side: pixels along each edge, for images that are not encoded.
        max_broken: the share of the images of a part that may be broken, if they are not encoded; they are left out.
        num_workers: processes that prepare batches; 0 prepares them in the training process.
    """

    train: str
    validation: str | None = None
    test: str | None = None
    split: SplitRecipe = SplitRecipe()
    augmentation: AugmentationName = "none"
    palette: str | None = None
    side: Annotated[int, Within(ranges.SIDE)] | None = None
    max_broken: Annotated[float, Within(ranges.BROKEN_SHARE)] = MAX_BROKEN
    num_workers: Annotated[int, Within(ranges.DATA_WORKERS)] = 0


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ObjectiveRecipe:
    """What is minimised; see `imagegpt.training.objectives`.

    Args:
        name: which. "joint-bert" is "joint" for a bidirectional model, which learns classes with pixels hidden, too.
        mask_probability: of each pixel being hidden, for "bert" and "joint-bert" only; 0.15 in the paper.
        mask_up_to: each training image's probability is drawn evenly between `mask_probability` and this, for a model
            that shall fill large holes; None keeps it. Validation hides `mask_probability`. For "bert" only.
        generative_weight: of the pixels' loss, for "joint" and "joint-bert" only.
    """

    name: ObjectiveName = "autoregressive"
    mask_probability: Probability = 0.15
    mask_up_to: Probability | None = None
    generative_weight: Annotated[float, Within(ranges.LOSS_WEIGHT)] = 1.0

    def __post_init__(self) -> None:
        own = (
            ("mask_probability", ("bert", "joint-bert"), 0.15),
            ("mask_up_to", ("bert",), None),
            ("generative_weight", ("joint", "joint-bert"), 1.0),
        )
        for field, owners, default in own:
            if self.name not in owners and getattr(self, field) != default:
                raise ValueError(
                    f"objective.{field} is {getattr(self, field)} and objective.name is {self.name!r}: it is for "
                    f"{' and '.join(map(repr, owners))} only, drop one"
                )

        if self.mask_up_to is not None and self.mask_up_to <= self.mask_probability:
            raise ValueError(
                f"objective.mask_up_to is {self.mask_up_to} and objective.mask_probability {self.mask_probability}: "
                "the first must be larger, or left out"
            )

    @property
    def needs_labels(self) -> bool:
        """Whether it learns classes."""
        return self.name in ("joint", "joint-bert", "classification")

    @property
    def hides_pixels(self) -> bool:
        """Whether it is for a bidirectional model, some of whose pixels are hidden."""
        return self.name in ("bert", "joint-bert")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainingRecipe:
    """How the weights are updated. Where nothing is said, the paper's value, or what suits a small data set.

    Args:
        num_steps: updates. May grow when a run is resumed, also after its end: see `optimization.learning_rate`.
        batch_size: images in a step, of all processes together.
        micro_batch: images a process works on at a time, gradients being accumulated; None is all of its share.
        optimizer: "adamw" as in the paper; "muon" updates the projections by Muon and the rest by AdamW, which learns
            more from few images.
        learning_rate: at its highest, after the warm-up.
        warmup_steps: over which the rate rises linearly.
        schedule: what follows: half a cosine down to 0 (the paper), or no change.
        beta1: of AdamW.
        beta2: of AdamW; the paper saw loss spikes at 0.999.
        weight_decay: on matrices; not on embeddings, biases and gains. The paper has none.
        max_grad_norm: longer gradients are shortened to this.
        average_decay: of the running average of the weights, per step; the average is what is kept. 0 keeps the last.
        precision: of products; weights and sums stay in float32. "auto" is bfloat16 where the device multiplies it,
            else float32, see `imagegpt.common.precision`.
        compile: compile the blocks.
        gradient_checkpointing: compute all activations of a block again for the backward pass, which takes a third more
            time and half of what memory they took.
        attention: transformers' name of the backend, or "kernels": ours where there are some, for CPUs, else sdpa.
        parallel: with several processes: copies of the weights ("ddp") or shards ("fsdp").
        seed: of the weights, the order of the images, augmentation, masks and dropout.
    """

    num_steps: Steps
    batch_size: Images = 128
    micro_batch: Images | None = None
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: Annotated[float, Within(ranges.LEARNING_RATE)] = 0.003
    warmup_steps: Annotated[int, Within(ranges.WARMUP_STEPS)] = 100
    schedule: Literal["cosine", "constant"] = "cosine"
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    weight_decay: Annotated[float, Within(ranges.WEIGHT_DECAY)] = 0.01
    max_grad_norm: Annotated[float, Within(ranges.GRADIENT_NORM)] = 1.0
    average_decay: Decay = 0.99
    precision: PrecisionField = "auto"
    compile: bool = False
    gradient_checkpointing: bool = False
    attention: Literal["kernels", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"] = (
        "kernels"
    )
    parallel: Literal["ddp", "fsdp"] = "ddp"
    seed: Annotated[int, Within(ranges.TRAINING_SEED)] = 0

    def __post_init__(self) -> None:
        if self.warmup_steps >= self.num_steps and self.warmup_steps:
            raise ValueError(
                f"training.warmup_steps is {self.warmup_steps} and training.num_steps {self.num_steps}: "
                "the warm-up must be shorter than the run"
            )
        if self.optimizer == "muon" and self.parallel == "fsdp":
            raise ValueError(
                "training.optimizer is 'muon' and training.parallel 'fsdp': Muon needs whole matrices, choose ddp or "
                "adamw"
            )
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise ValueError(
                f"training.batch_size is {self.batch_size}, which training.micro_batch = {self.micro_batch} does not "
                "divide: choose a divisor"
            )


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class WatchRecipe:
    """What happens beside the updates.

    Args:
        validate_every: steps between two validations.
        validation_images: at most so many are scored, at random, always the same; None means all.
        patience: validations without a new best after which the run ends; None never ends it early.
        checkpoint_every: steps between two checkpoints.
        keep_checkpoints: how many of them are kept; with two, a damaged one does no harm.
        spike_nats: a loss this much above the mean of the last 100 steps, or one that is not finite, or whose gradients
            are not, rolls the run back to its last checkpoint, and it goes on with other images. None never does: a
            loss or gradients that are not finite end the run.
        max_rollbacks: after which the run ends.
        samples: images drawn at each validation; 0 draws none.
        trackers: where numbers go beside log.jsonl, by accelerate's names: tensorboard, wandb, mlflow ...
    """

    validate_every: Steps = 100
    validation_images: Annotated[int, Within(ranges.SOME_IMAGES)] | None = None
    patience: Annotated[int, Within(ranges.VALIDATIONS)] | None = None
    checkpoint_every: Steps = 500
    keep_checkpoints: Annotated[int, Within(ranges.CHECKPOINTS)] = 2
    spike_nats: Annotated[float, Within(ranges.NATS)] | None = None
    max_rollbacks: Annotated[int, Within(ranges.ROLLBACKS)] = 5
    samples: Annotated[int, Within(ranges.SHEET_SAMPLES)] = 16
    trackers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class CardRecipe:
    """What the model's card says that numbers cannot. None leaves it general.

    Args:
        title: of the card.
        description: what the model is and is for; its first sentence is what `imagegpt models` shows.
        data: where the images are from, and their licence.
        license: of the weights.
    """

    title: str | None = None
    description: str | None = None
    data: str | None = None
    license: str | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Recipe:
    """A training run."""

    model: ModelRecipe
    data: DataRecipe
    training: TrainingRecipe
    objective: ObjectiveRecipe = ObjectiveRecipe()
    watch: WatchRecipe = WatchRecipe()
    card: CardRecipe = CardRecipe()

    def __post_init__(self) -> None:
        if self.model.lora_rank and self.training.optimizer == "muon":
            raise ValueError(
                f"model.lora_rank is {self.model.lora_rank} and training.optimizer 'muon': Muon updates projections, "
                "which stand still beside adapters, choose adamw"
            )

        if self.model.shift_inputs and self.objective.name not in ("joint", "classification"):
            raise ValueError(
                f"model.shift_inputs is true and objective.name is {self.objective.name!r}: it is for causal "
                "classifiers ('joint' and 'classification') only, drop it"
            )

    def resolved(self) -> str:
        """The recipe as YAML, every default spelt out; reading it gives this recipe again."""
        fields = {FORMAT_KEY: RECIPE_FORMAT, **TypeAdapter(Recipe).dump_python(self, mode="json")}
        return yaml.safe_dump(fields, sort_keys=False)
