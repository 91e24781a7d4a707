"""What training minimises.

Axis letters: B images, T pixels in raster order, V colours (the start token, sos, has id V), K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from imagegpt.common.precision import at_least_float32
from imagegpt.model.modeling import ImageGPTForCausalImageModeling, ImageGPTForImageClassification
from imagegpt.training.joint_model import GeneratorAndClassifier


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images to learn from.

    Attributes:
        ids: pixels, 0 to V - 1.
        labels: the class of each image, 0 to K - 1, if there are classes.
        masked: which pixels are hidden from the model, for BERT.
    """

    ids: Int[Tensor, "b t"]
    labels: Int[Tensor, " b"] | None = None
    masked: Bool[Tensor, "b t"] | None = None

    def to(self, device: Any) -> "Batch":
        """The same on a device; from pinned memory the copy does not wait."""
        move = lambda x: None if x is None else x.to(device, non_blocking=True)  # noqa: E731
        ids = self.ids.to(device, non_blocking=True)
        return Batch(ids=ids, labels=move(self.labels), masked=move(self.masked))

    def pin_memory(self) -> "Batch":
        """The same in memory a GPU can fetch from; torch's DataLoader calls this."""
        pin = lambda x: None if x is None else x.pin_memory()  # noqa: E731
        return Batch(ids=self.ids.pin_memory(), labels=pin(self.labels), masked=pin(self.masked))


Parts = dict[str, Tensor]  # "total", which is minimised, and what it is made of, each a scalar; "correct" is a share


class Loss(nn.Module):
    """A model together with its objective, so that what wraps a module (DDP, FSDP) sees the whole of a step.

    Args:
        model: of the kind the objective needs.
        objective: from a model and a batch to a loss and its parts.
    """

    def __init__(self, model: nn.Module, objective: Callable[[Any, Batch], Parts]) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: Batch) -> Parts:
        """The loss of a batch, under "total", and its parts."""
        return self.objective(self.model, batch)


@dataclass(frozen=True)
class Autoregressive:
    """Each pixel from those before it."""

    def __call__(self, model: ImageGPTForCausalImageModeling, batch: Batch) -> Parts:
        """See `autoregressive_loss`."""
        return {"total": autoregressive_loss(model, batch.ids)}


@dataclass(frozen=True)
class Bert:
    """Hidden pixels from all others; see `bert_loss`.

    Args:
        mask_probability: of each pixel being hidden, in (0, 1).
    """

    mask_probability: float = 0.15

    def __call__(self, model: ImageGPTForCausalImageModeling, batch: Batch) -> Parts:
        """See `bert_loss`."""
        assert batch.masked is not None, "the feed draws masks for this objective"
        return {"total": bert_loss(model, batch.ids, batch.masked)}


@dataclass(frozen=True)
class Classification:
    """The class of the whole image."""

    def __call__(self, model: ImageGPTForImageClassification, batch: Batch) -> Parts:
        """Cross-entropy, and the share of images whose likeliest class is the right one."""
        assert batch.labels is not None, "the feed has labels for this objective"
        logits = model(batch.ids, use_cache=False).logits
        total, correct = _class_loss(logits, batch.labels)
        return {"total": total, "correct": correct}


@dataclass(frozen=True)
class Joint:
    """The class of the image and each of its pixels, L_gen + L_clf: how the paper fine-tunes.

    With `config.shift_inputs` the start token comes first, as in the paper; without, the pixels enter as they come.

    Args:
        generative_weight: of the pixels' loss; 1 in the paper, 0 leaves the class alone.
    """

    generative_weight: float = 1.0

    def __call__(self, model: GeneratorAndClassifier, batch: Batch) -> Parts:
        """Both losses from one pass over the blocks, whose inputs are the classifier's."""
        assert batch.labels is not None, "the feed has labels for this objective"
        ids, shifted = batch.ids, model.config.shift_inputs
        pixel_logits, class_logits = model(with_start_token(ids, model.config.sos_token_id) if shifted else ids)
        if not shifted:  # nothing predicts the first pixel, and the last input predicts nothing
            pixel_logits, ids = pixel_logits[:, :-1], ids[:, 1:]
        pixels = _cross_entropy(pixel_logits.flatten(0, 1), ids.flatten())
        return _joint(pixels, class_logits, batch.labels, self.generative_weight)


@dataclass(frozen=True)
class JointBert:
    """The class of the image and its hidden pixels, both from what is left of it: how the paper fine-tunes BERT.

    Args:
        mask_probability: of each pixel being hidden, in (0, 1).
        generative_weight: of the pixels' loss; 1 in the paper, 0 leaves the class alone.
    """

    mask_probability: float = 0.15
    generative_weight: float = 1.0

    def __call__(self, model: GeneratorAndClassifier, batch: Batch) -> Parts:
        """Both losses from one pass over the blocks."""
        assert batch.labels is not None, "the feed has labels for this objective"
        assert batch.masked is not None, "the feed draws masks for this objective"
        pixel_logits, class_logits = model(inputs_embeds=masked_embeddings(model, batch.ids, batch.masked))
        pixels = _masked_loss(pixel_logits, batch.ids, batch.masked)
        return _joint(pixels, class_logits, batch.labels, self.generative_weight)


def with_start_token(ids: Int[Tensor, "b t"], sos: int) -> Int[Tensor, "b t"]:
    """What a model is fed to predict `ids`: the start token and all pixels but the last, which predicts nothing.

    Args:
        ids: pixels in raster order.
        sos: id of the start token, `config.sos_token_id`.
    """
    return functional.pad(ids[:, :-1], (1, 0), value=sos)


def autoregressive_loss(model: ImageGPTForCausalImageModeling, ids: Int[Tensor, "b t"]) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of a pixel given those before it, in nats, over all T pixels.

    Args:
        model: a causal model with at least T positions; it is used in the mode it is in (dropout or not).
        ids: pixels in raster order, 0 to V - 1.
    Returns: a scalar with gradient, in float32 or better whatever the model's dtype.
    Raises: ValueError if the model is bidirectional.
    Source: the paper, section on pre-training objectives; the first pixel is predicted from the start token alone.
    """
    if not model.config.is_causal:
        raise ValueError("this model is bidirectional (is_causal=False): the autoregressive loss needs a causal one")
    logits = model(with_start_token(ids, model.config.sos_token_id), use_cache=False).logits
    return _cross_entropy(logits.flatten(0, 1), ids.flatten())


def bert_loss(
    model: ImageGPTForCausalImageModeling, ids: Int[Tensor, "b t"], masked: Bool[Tensor, "b t"]
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of a hidden pixel given the others, in nats: of each image, then of the batch.

    The embedding of a hidden pixel's colour is zero; its position stays. There is no start token.

    Args:
        model: a bidirectional model with at least T positions; it is used in the mode it is in.
        ids: pixels in raster order, 0 to V - 1.
        masked: which are hidden; an image of which none is counts as 0.
    Returns: a scalar with gradient, in float32 or better whatever the model's dtype.
    Raises: ValueError if the model is causal.
    Source: the paper, section on pre-training objectives, and the original code.
    """
    if model.config.is_causal:
        raise ValueError("this model is causal (is_causal=True): the BERT loss needs a bidirectional one")
    logits = model(inputs_embeds=masked_embeddings(model, ids, masked), use_cache=False).logits
    return _masked_loss(logits, ids, masked)


def masked_embeddings(
    model: ImageGPTForCausalImageModeling | ImageGPTForImageClassification | GeneratorAndClassifier,
    ids: Int[Tensor, "b t"],
    masked: Bool[Tensor, "b t"],
) -> Float[Tensor, "b t c"]:
    """What a bidirectional model is fed: the embeddings of colours, 0 where a pixel is hidden."""
    return model.transformer.wte(ids).masked_fill(masked.unsqueeze(-1), 0)


def _masked_loss(
    logits: Float[Tensor, "b t v"], ids: Int[Tensor, "b t"], masked: Bool[Tensor, "b t"]
) -> Float[Tensor, ""]:
    by_class = logits.to(at_least_float32(logits.dtype)).transpose(1, 2)
    nats = functional.cross_entropy(by_class, ids, reduction="none")
    return ((nats * masked).sum(dim=1) / masked.sum(dim=1).clamp(min=1)).mean()


def _cross_entropy(logits: Float[Tensor, "n v"], targets: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    return functional.cross_entropy(logits.to(at_least_float32(logits.dtype)), targets)


def _joint(pixels: Tensor, class_logits: Tensor, labels: Tensor, generative_weight: float) -> Parts:
    classes, correct = _class_loss(class_logits, labels)
    total = generative_weight * pixels + classes
    return {"total": total, "pixels": pixels.detach(), "classes": classes.detach(), "correct": correct}


def _class_loss(logits: Float[Tensor, "b k"], labels: Int[Tensor, " b"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    correct = (logits.argmax(dim=1) == labels).float().mean()
    return _cross_entropy(logits, labels), correct
