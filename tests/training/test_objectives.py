import math

import pytest
import torch

from helpers import image_ids, tiny_config, tiny_model
from imagegpt import ImageGPTForCausalImageModeling, ImageGPTForImageClassification
from imagegpt.data.batch import Batch
from imagegpt.model.losses import autoregressive_loss, bert_loss, masked_embeddings, with_start_token
from imagegpt.training.objectives import (
    Autoregressive,
    Bert,
    Classification,
    ImageGPTWithBothHeads,
    Joint,
    JointBert,
    ModelWithObjective,
)


def naive_nll(model, ids):
    """Mean nats per pixel, one image and one pixel at a time, from a softmax written out."""
    nats = []
    for image in ids.tolist():
        for t, pixel in enumerate(image):
            seen = torch.tensor([[model.config.sos_token_id, *image[:t]]])
            scores = model(seen).logits[0, -1].tolist()
            nats.append(math.log(sum(math.exp(score) for score in scores)) - scores[pixel])
    return sum(nats) / len(nats)


def test_start_token_comes_first_and_the_last_pixel_is_not_fed():
    ids = torch.tensor([[3, 1, 2], [0, 0, 5]])
    assert with_start_token(ids, 16).tolist() == [[16, 3, 1], [16, 0, 0]]
    assert ids.tolist() == [[3, 1, 2], [0, 0, 5]]


def test_loss_equals_a_naive_loop_over_pixels():
    model = tiny_model(dtype=torch.float64)
    ids = image_ids(3, sos=False)
    assert autoregressive_loss(model, ids).item() == pytest.approx(naive_nll(model, ids), abs=1e-12)


def test_loss_equals_the_models_own():
    model = tiny_model(dtype=torch.float64)
    ids = image_ids(3, sos=False)
    whole = torch.cat([torch.full((3, 1), model.config.sos_token_id), ids], dim=1)
    assert autoregressive_loss(model, ids).item() == pytest.approx(model(whole, labels=whole).loss.item(), abs=1e-12)


def test_a_fresh_openai_model_knows_nothing():
    model = ImageGPTForCausalImageModeling(tiny_config(init_scheme="openai"))
    assert autoregressive_loss(model, image_ids(2, sos=False)).item() == pytest.approx(math.log(16), abs=1e-6)


def test_every_pixel_has_a_gradient():
    """The first pixel's comes through the start token, the last one's through the position before it."""
    model = tiny_model()
    autoregressive_loss(model, image_ids(2, sos=False)).backward()
    assert (model.transformer.wpe.weight.grad.abs().sum(dim=1) > 0).all()
    assert model.transformer.wte.weight.grad[-1].abs().sum() > 0


def test_half_precision_logits_are_summed_in_float32():
    model = tiny_model(dtype=torch.bfloat16)
    assert autoregressive_loss(model, image_ids(2, sos=False)).dtype == torch.float32


def test_a_bidirectional_model_is_refused():
    with pytest.raises(ValueError, match="bidirectional"):
        autoregressive_loss(tiny_model(is_causal=False), image_ids(2, sos=False))


MASKED = torch.tensor([[1, 0, 0, 1] * 4, [0, 1, 0, 0] + [0] * 12, [0] * 16, [1] * 16], dtype=torch.bool)


def bidirectional(**overrides):
    return tiny_model(is_causal=False, **overrides)


class TestBert:
    def test_it_equals_a_naive_loop_over_hidden_pixels(self):
        model = bidirectional(dtype=torch.float64)
        ids = image_ids(4, sos=False)
        means = []
        for image, hidden in zip(ids, MASKED, strict=True):
            embedded = model.transformer.wte(image).clone()
            embedded[hidden] = 0
            scores = model(inputs_embeds=embedded[None]).logits[0].tolist()
            nats = [
                math.log(sum(math.exp(score) for score in scores[t])) - scores[t][image[t]]
                for t in range(16)
                if hidden[t]
            ]
            means.append(sum(nats) / max(1, len(nats)))
        assert means[2] == 0  # nothing is hidden
        assert bert_loss(model, ids, MASKED).item() == pytest.approx(sum(means) / 4, abs=1e-12)

    def test_what_is_under_the_mask_cannot_be_seen(self):
        """All but the target: the logits stay the same bit for bit, whatever the hidden pixels are."""
        model, ids = bidirectional(), image_ids(4, sos=False)
        seen = []
        model.lm_head.register_forward_hook(lambda *args: seen.append(args[2].detach().clone()))
        bert_loss(model, ids, MASKED)
        bert_loss(model, torch.where(MASKED, (ids + 5) % 16, ids), MASKED)
        bert_loss(model, torch.where(MASKED, ids, (ids + 5) % 16), MASKED)
        assert seen[0].equal(seen[1])
        assert not seen[0].equal(seen[2])

    def test_what_is_not_hidden_is_no_target(self):
        """Neither as a loss nor as a gradient of the head at its position."""
        model, ids = bidirectional(), image_ids(4, sos=False)
        gradients = []

        def watch(module, inputs, logits):
            logits.register_hook(gradients.append)

        model.lm_head.register_forward_hook(watch)
        bert_loss(model, ids, MASKED).backward()
        moved = gradients[0].abs().sum(dim=-1) > 0
        assert moved.equal(MASKED)

    def test_images_count_alike_however_much_is_hidden(self):
        model, ids = bidirectional(), image_ids(4, sos=False)
        alone = [bert_loss(model, ids[k : k + 1], MASKED[k : k + 1]).item() for k in range(4)]
        assert bert_loss(model, ids, MASKED).item() == pytest.approx(sum(alone) / 4, abs=1e-6)

    def test_a_fresh_openai_model_knows_nothing(self):
        model = ImageGPTForCausalImageModeling(tiny_config(init_scheme="openai", is_causal=False))
        assert bert_loss(model, image_ids(2, sos=False), MASKED[[0, 3]]).item() == pytest.approx(math.log(16), abs=1e-5)

    def test_half_precision_logits_are_summed_in_float32(self):
        assert bert_loss(bidirectional(dtype=torch.bfloat16), image_ids(4, sos=False), MASKED).dtype == torch.float32

    def test_a_causal_model_is_refused(self):
        with pytest.raises(ValueError, match="causal"):
            bert_loss(tiny_model(), image_ids(4, sos=False), MASKED)

    def test_the_objective_takes_the_masks_of_the_batch(self):
        model, ids = bidirectional(), image_ids(4, sos=False)
        parts = ModelWithObjective(model, Bert())(Batch(ids=ids, masked=MASKED))
        assert parts.keys() == {"loss"}
        assert parts["loss"].equal(bert_loss(model, ids, MASKED))


LABELS = torch.tensor([0, 2, 1, 2])


def two_heads(dtype=torch.float64, shift_inputs=False):
    generator = tiny_model(dtype=dtype)
    options = {"num_labels": 3, "shift_inputs": shift_inputs}
    classifier = tiny_model(ImageGPTForImageClassification, seed=1, dtype=dtype, **options)
    return ImageGPTWithBothHeads(generator, classifier), generator, classifier


class TestJoint:
    @pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("shift_inputs", [False, True])
    def test_it_is_the_weighted_sum_and_so_are_its_gradients(self, weight, shift_inputs):
        model, generator, classifier = two_heads(shift_inputs=shift_inputs)
        classifier.transformer = generator.transformer
        batch = Batch(ids=image_ids(4, sos=False), labels=LABELS)
        parts = Joint(generative_weight=weight).loss(model, batch)
        # Without the start token nothing predicts the first pixel.
        pixels = (
            autoregressive_loss(generator, batch.ids) if shift_inputs else generator(batch.ids, labels=batch.ids).loss
        )
        classes = Classification().loss(classifier, batch)
        assert parts["pixel_loss"].item() == pytest.approx(pixels.item(), abs=1e-12)
        assert parts["class_loss"].item() == pytest.approx(classes["loss"].item(), abs=1e-12)
        assert parts["accuracy"] == classes["accuracy"]
        expected = weight * pixels + classes["loss"]
        assert parts["loss"].item() == pytest.approx(expected.item(), abs=1e-12)
        weights = list(model.parameters())
        own = torch.autograd.grad(parts["loss"], weights, allow_unused=True)
        separate = torch.autograd.grad(expected, weights, allow_unused=True)
        for a, b in zip(own, separate, strict=True):
            zero = torch.zeros(())
            torch.testing.assert_close(zero if a is None else a, zero if b is None else b, rtol=1e-9, atol=1e-12)

    def test_both_heads_share_one_pass(self):
        model, generator, _ = two_heads()
        calls = []
        generator.transformer.register_forward_hook(lambda *_: calls.append(1))
        Joint().loss(model, Batch(ids=image_ids(4, sos=False), labels=LABELS))
        assert calls == [1]

    def test_the_share_that_is_right(self):
        model, generator, classifier = two_heads()
        classifier.transformer = generator.transformer
        ids = image_ids(4, sos=False)
        said = classifier(ids).logits.argmax(dim=1)
        labels = torch.where(torch.tensor([True, True, True, False]), said, (said + 1) % 3)
        assert Joint().loss(model, Batch(ids=ids, labels=labels))["accuracy"] == 0.75


class TestJointBert:
    @pytest.fixture
    def parts(self):
        generator = bidirectional(dtype=torch.float64)
        classifier = tiny_model(
            ImageGPTForImageClassification,
            seed=1,
            dtype=torch.float64,
            num_labels=3,
            is_causal=False,
            shift_inputs=False,
        )
        classifier.transformer = generator.transformer
        return ImageGPTWithBothHeads(generator, classifier), generator, classifier

    def test_both_losses_are_of_what_the_masks_leave(self, parts):
        model, generator, classifier = parts
        ids = image_ids(4, sos=False)
        told = JointBert(mask_probability=0.15, generative_weight=0.5).loss(
            model, Batch(ids=ids, labels=LABELS, masked=MASKED)
        )
        pixels = bert_loss(generator, ids, MASKED)
        logits = classifier(inputs_embeds=masked_embeddings(classifier, ids, MASKED)).logits
        classes = torch.nn.functional.cross_entropy(logits, LABELS)
        assert told["pixel_loss"].item() == pytest.approx(pixels.item(), abs=1e-12)
        assert told["class_loss"].item() == pytest.approx(classes.item(), abs=1e-12)
        assert told["loss"].item() == pytest.approx((0.5 * pixels + classes).item(), abs=1e-12)

    def test_what_is_under_the_mask_cannot_be_seen(self, parts):
        model, *_ = parts
        ids = image_ids(4, sos=False)
        other = torch.where(MASKED, (ids + 1) % 16, ids)
        told, changed = (JointBert().loss(model, Batch(ids=x, labels=LABELS, masked=MASKED)) for x in (ids, other))
        assert told["class_loss"].equal(changed["class_loss"])
        assert not told["pixel_loss"].equal(changed["pixel_loss"])  # they are the targets


def test_classification_is_the_models_own_loss():
    classifier = tiny_model(ImageGPTForImageClassification, dtype=torch.float64, num_labels=3)
    batch = Batch(ids=image_ids(4, sos=False), labels=LABELS)
    expected = classifier(batch.ids, labels=batch.labels).loss.item()
    assert Classification().loss(classifier, batch)["loss"].item() == pytest.approx(expected, abs=1e-12)


def test_the_autoregressive_objective_is_its_loss():
    model, ids = tiny_model(), image_ids(2, sos=False)
    assert ModelWithObjective(model, Autoregressive())(Batch(ids=ids))["loss"].equal(autoregressive_loss(model, ids))


def test_a_batch_can_be_moved():
    batch = Batch(ids=image_ids(2, sos=False), labels=None, masked=MASKED[:2])
    moved = batch.to("meta")
    assert (moved.ids.device.type, moved.labels, moved.masked.device.type) == ("meta", None, "meta")
