"""What a trained model is worth on the parts of its data, or of other data."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from imagegpt.checkpoints.loading import load_config, load_model, load_processor
from imagegpt.data.broken_images import MAX_BROKEN
from imagegpt.data.identity import DataRecord
from imagegpt.evaluation.comparison import Parts, Score, compare, score_model, uniform_score
from imagegpt.model.attention import kernels
from imagegpt.model.base import ImageGPTPreTrainedModel
from imagegpt.model.modeling import ImageGPTForCausalImageModeling, ImageGPTForImageClassification
from imagegpt.training.data import Data
from imagegpt.training.dataloader import Images, Subset, in_stretches
from imagegpt.training.datasets import data_to_score
from imagegpt.training.objectives import Batch, bert_loss, masked_embeddings
from imagegpt.training.rng import masks, random_subset

_MOST_COUNTED = 50_000  # images the baselines count over: more take memory, and change little
_AT_ONCE, _POSITIONS_AT_ONCE = 64, 1 << 13  # images on a GPU; pixels on a CPU, where what is in the cache is soon read
_NUM_VIEWS, _VIEW_SEED = 5, 0  # of a bidirectional classifier

Progress = Callable[[int, int], None]
Model = TypeVar("Model", bound=ImageGPTPreTrainedModel)


def silent(done: int, total: int) -> None:
    """No progress is told."""


def data_for_folder(place: str, folder: Path, name: str, *, max_broken: float = MAX_BROKEN) -> Data:
    """Images to try a model on, in the parts that it was trained with if they are the same.

    Args:
        place: digits, encoded images, or images of any kind.
        folder: of the model.
        name: of the model, for people.
        max_broken: the share of the images of a part that may be broken; they are left out.
    Raises: ValueError or OSError, in one sentence, if there are no such images, too many are broken, or they do not
        fit the model.
    """
    processor, record = load_processor(folder, load_config(folder)), DataRecord.read(folder)
    return data_to_score(place, name, processor, record, max_broken=max_broken)


def score_folder(
    folder: Path,
    data: Data,
    *,
    part: str | None = None,
    name: str = "this model",
    device: str = "cpu",
    progress: Progress = silent,
) -> list[Score]:
    """Scores of a causal model on a part of the images, beside the baselines.

    If only some images of the part were scored while it was trained, its score on these is there, too. There are no
    baselines if they would be counted over the images that they are scored on.

    Args:
        folder: of the model.
        data: the images.
        part: of them; None is test if there is one, else validation.
        name: of the model, for people.
        device: where it computes.
        progress: called with images that the model has scored, and images in all.
    """
    model, part = _loaded(folder, ImageGPTForCausalImageModeling, device), data.choose_part(part)
    options = {"batch_size": _images_at_once(model), "progress": progress}
    subset = data.subset if part == "validation" else None
    if part == "train" or "train" not in data.parts:
        ids = ids_of(data.parts[part])
        own = score_model(model, ids, name=name, subset=subset, **options)
        return sorted([*own, uniform_score(data.palette.num_colors)], key=lambda one: one.nats)
    return compare(model, parts_of(data, part), name=name, subset=subset, **options)


def score_all(
    folder: Path, data: Data, *, name: str = "this model", device: str = "cpu", progress: Progress = silent
) -> tuple[list[Score], int]:
    """The score of a causal model on all images, whatever part they are in, beside that of knowing nothing.

    There are no baselines: they would be counted over the images that they are scored on.

    Args:
        folder: of the model.
        data: the images.
        name: of the model, for people.
        device: where it computes.
        progress: called with images that were scored, and images in all.
    Returns: the scores, best first, and how many images there are.
    """
    model = _loaded(folder, ImageGPTForCausalImageModeling, device)
    images = np.concatenate([ids_of(images) for images in data.everything])
    own = score_model(model, images, name=name, batch_size=_images_at_once(model), progress=progress)
    return sorted([*own, uniform_score(data.palette.num_colors)], key=lambda one: one.nats), len(images)


def parts_of(data: Data, part: str) -> Parts:
    """The images of a run as arrays, not augmented.

    Args:
        data: with a training part.
        part: to score. What is counted is at most 50,000 of the training images, chosen at random, the same each time.
    """
    counted = Subset(data.train, random_subset(len(data.train), _MOST_COUNTED, data.record.split["seed"]))
    scored = ids_of(data.parts[part])
    return Parts(
        train=ids_of(counted),
        validation=ids_of(data.validation) if part != "validation" and "validation" in data.parts else scored,
        test=scored,
        num_colors=data.palette.num_colors,
        side=data.processor.size["width"],
    )


def ids_of(images: Images) -> np.ndarray:
    """All ids of images, (N, T), not augmented."""
    return np.concatenate([stretch.ids.numpy() for stretch in in_stretches(images, 1024)])


@torch.inference_mode()
def classify(
    folder: Path,
    images: Images,
    *,
    mask_probability: float = 0.15,
    device: str = "cpu",
    progress: Progress = silent,
) -> tuple[np.ndarray, np.ndarray]:
    """What a classifier says of images.

    A bidirectional one has learnt with pixels hidden, and sees each image five times with other pixels hidden; what it
    says most often is taken, of equals the likelier. Source: the paper, section on fine-tuning.

    Args:
        folder: of the classifier.
        images: with classes.
        mask_probability: of a pixel being hidden from a bidirectional model.
        device: where it computes.
        progress: called with images seen, and images in all.
    Returns: the class of each image, and the right one.
    """
    model = _loaded(folder, ImageGPTForImageClassification, device)
    said, right = [], []
    progress(0, len(images))
    for stretch in in_stretches(images, _images_at_once(model)):
        assert stretch.labels is not None, "images to classify have labels"
        ids = stretch.ids.to(device)
        if model.config.is_causal:
            classes = model(ids).logits.argmax(dim=1)
        else:
            classes = modal_class(torch.stack(list(_views(model, ids, stretch.start, mask_probability))))
        said.append(classes.cpu().numpy())
        right.append(stretch.labels.numpy())
        progress(sum(map(len, right)), len(images))
    return np.concatenate(said), np.concatenate(right)


def modal_class(logits: Float[Tensor, "m b k"]) -> Int64[Tensor, " b"]:
    """What most of M views of each of B images say it is; of classes with as many, the likelier over all views."""
    votes = functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).sum(dim=0)
    probabilities = logits.float().softmax(dim=-1).mean(dim=0)  # below 1, so that they decide between equals only
    return (votes + 0.5 * probabilities).argmax(dim=-1)


def _loaded(folder: Path, kind: type[Model], device: str) -> Model:
    """A model with the fastest attention, for evaluation."""
    model = load_model(folder, kind, device=device)
    model.set_attn_implementation(kernels.NAME)
    return model


def _images_at_once(model: ImageGPTPreTrainedModel) -> int:
    if model.device.type != "cpu":
        return _AT_ONCE
    return max(1, _POSITIONS_AT_ONCE // model.config.n_positions)


def _views(
    model: ImageGPTForImageClassification, ids: Int64[Tensor, "b t"], start: int, probability: float
) -> Iterator[Float[Tensor, "b k"]]:
    """Logits of a bidirectional classifier for images, with other pixels hidden each time."""
    places = np.arange(start, start + len(ids))
    for view in range(_NUM_VIEWS):
        hidden = torch.from_numpy(masks(_VIEW_SEED, view, places, ids.shape[1], probability)).to(ids.device)
        yield model(inputs_embeds=masked_embeddings(model, ids, hidden)).logits


@torch.inference_mode()
def masked_nats(
    folder: Path,
    images: Images,
    *,
    probability: float = 0.15,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> float:
    """Nats per hidden pixel of a bidirectional model, each pixel of each image being hidden with a probability."""
    assert not load_config(folder).is_causal, "a causal model hides nothing"
    model = _loaded(folder, ImageGPTForCausalImageModeling, device)
    total, num = 0.0, 0
    progress(0, len(images))
    for stretch in in_stretches(images, _images_at_once(model)):
        places = np.arange(stretch.start, stretch.start + len(stretch.ids))
        hidden = torch.from_numpy(masks(seed, 0, places, stretch.ids.shape[1], probability))
        batch = Batch(ids=stretch.ids, masked=hidden).to(device)
        assert batch.masked is not None
        total += float(bert_loss(model, batch.ids, batch.masked)) * len(stretch.ids)
        num += len(stretch.ids)
        progress(num, len(images))
    return total / num
