"""The pixel loss: targets of each position, for any `logits_to_keep`."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from helpers import image_ids, tiny_model
from imagegpt import ImageGPTForImageClassification


def mean_nll(logits, targets):
    """Nats by hand, over all targets that are not -100."""
    log_probabilities = logits.double().log_softmax(-1)
    chosen = targets != -100
    picked = log_probabilities.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return -(picked * chosen).sum() / chosen.sum()


def targets_of(labels, is_causal):
    return functional.pad(labels[:, 1:], (0, 1), value=-100) if is_causal else labels


KEPT = {
    **{str(number): number for number in (0, 2, 7, 14, 15, 16, 99)},
    "numpy": np.int64(15),
    "indices": torch.tensor([3, 0, 14, 7]),
    "fifteen_indices": torch.arange(15),
    "from_the_end": torch.tensor([-2, -5]),
    "mask": torch.arange(16) % 3 == 0,
    "last_fifteen": torch.arange(1, 16),
}


@pytest.mark.parametrize("keep", KEPT.values(), ids=KEPT)
@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "bidirectional"])
def test_loss_with_logits_to_keep(keep, is_causal):
    """Regression: with T - 1 positions kept, labels were off by one position."""
    model, ids = tiny_model(is_causal=is_causal), image_ids()
    labels = image_ids(seed=3, sos=False)
    labels[0, 4] = labels[1, 9] = -100
    kept = keep if isinstance(keep, torch.Tensor) else torch.arange(16)[-keep:] if keep else torch.arange(16)
    whole = model(ids).logits
    outputs = model(ids, labels=labels, logits_to_keep=keep)
    torch.testing.assert_close(outputs.logits, whole[:, kept])
    expected = mean_nll(whole[:, kept], targets_of(labels, is_causal)[:, kept])
    assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_loss_of_last_pixels_of_whole_images():
    """The start token and all pixels: one more label than positions."""
    model = tiny_model()
    whole = torch.cat([torch.full((2, 1), 16), image_ids(sos=False)], dim=1)
    logits = model(whole[:, :-1]).logits
    for keep in (1, 15, 16):
        loss = model(whole, labels=whole, logits_to_keep=keep).loss
        assert loss.item() == pytest.approx(mean_nll(logits[:, -keep:], whole[:, -keep:]).item(), rel=1e-5)


@pytest.mark.parametrize("keep", [0, 15, 3])
def test_shift_labels_equal_shifted_labels(keep):
    model, ids, labels = tiny_model(), image_ids(), image_ids(seed=3, sos=False)
    shifted = targets_of(labels, is_causal=True)
    expected = model(ids, labels=labels, logits_to_keep=keep).loss
    other = torch.zeros_like(labels)  # of a shard, for example: they do not count
    for given in ({"shift_labels": shifted}, {"shift_labels": shifted, "labels": other}):
        assert torch.equal(model(ids, **given, logits_to_keep=keep).loss, expected)


def test_context_parallel_shard_uses_its_own_targets():
    """Half of the positions, the last of which predicts the first pixel of the other half."""
    model, ids = tiny_model(), image_ids()
    shifted = targets_of(ids, is_causal=True)
    position_ids = torch.arange(16).expand(2, -1)
    logits = model(ids[:, :8]).logits
    outputs = model(
        ids[:, :8],
        labels=ids[:, :8],
        shift_labels=shifted[:, :8],
        position_ids=position_ids[:, :8],
        num_items_in_batch=30,
    )
    assert outputs.loss.item() == pytest.approx(mean_nll(logits, shifted[:, :8]).item() * 16 / 30, rel=1e-5)


def test_shift_labels_are_refused_by_bidirectional_models_and_classifiers():
    with pytest.raises(ValueError, match=r"shift_labels was given to a bidirectional model .*: give labels"):
        tiny_model(is_causal=False)(image_ids(), shift_labels=image_ids(sos=False))
    classifier = tiny_model(ImageGPTForImageClassification, num_labels=3)
    with pytest.raises(ValueError, match=r"shift_labels was given to a classifier, .*: give labels \(B,\)"):
        classifier(image_ids(), labels=torch.tensor([0, 1]), shift_labels=image_ids())
