import math
from itertools import chain, pairwise

import numpy as np
import pytest
import torch

from helpers import tiny_config
from imagegpt import ImageGPTForCausalImageModeling
from imagegpt.training import trainer
from imagegpt.training.objectives import autoregressive_loss
from imagegpt.training.trainer import TrainingOptions, batch_indices, learning_rate, train

STRIPES = torch.arange(16).repeat(24, 1).roll(1, dims=1).add(torch.arange(24)[:, None]) % 16


def fresh_model(**overrides):
    torch.manual_seed(7)
    return ImageGPTForCausalImageModeling(tiny_config(init_scheme="openai", resid_pdrop=0.1, **overrides))


def run(model=None, callback=lambda _: None, validate=None, **options):
    model = model or fresh_model()
    settings = {"num_steps": 12, "batch_size": 8, "warmup_steps": 2, "validate_every": 5, "average_decay": 0.5}

    def held_out(averaged):
        return autoregressive_loss(averaged, STRIPES[:4]).item()

    result = train(
        model,
        STRIPES,
        TrainingOptions(**{**settings, **options}),
        objective=autoregressive_loss,
        validate=validate or held_out,
        callback=callback,
    )
    return model, result


def same_weights(a, b):
    return all(x.equal(y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_the_loss_goes_down():
    seen = []
    model, result = run(callback=seen.append, num_steps=60)
    assert seen[0].loss == pytest.approx(math.log(16), abs=1e-6)
    assert seen[-1].loss < 0.5 * seen[0].loss
    assert result.best_nll < 0.5 * math.log(16)
    assert autoregressive_loss(model, STRIPES[:4]).item() == result.best_nll
    assert not model.training


def test_progress_tells_every_step():
    seen = []
    _, result = run(callback=seen.append)
    assert [progress.step for progress in seen] == list(range(1, 13))
    assert [progress.step for progress in seen if progress.validation_nll is not None] == [5, 10, 12]
    assert all(progress.num_steps == 12 for progress in seen)
    times = [progress.elapsed_s for progress in seen]
    assert times == sorted(times)
    assert result.final_nll == seen[-1].validation_nll
    assert result.elapsed_s >= times[-1]


def test_a_seed_means_the_same_bits():
    first, _ = run()
    torch.manual_seed(99)  # of no consequence
    again, _ = run()
    other, _ = run(seed=1)
    assert same_weights(first, again)
    assert not same_weights(first, other)


def test_dropout_is_a_function_of_seed_and_step():
    """A stand-in objective draws as dropout does: what it gets must not depend on what was drawn before the step."""

    def draws(seed, extra):
        seen = []

        def objective(model, ids):
            seen.append(torch.rand(()).item())
            torch.rand(extra)
            return autoregressive_loss(model, ids)

        options = TrainingOptions(num_steps=3, batch_size=4, seed=seed)
        train(fresh_model(), STRIPES, options, objective=objective, validate=lambda _: 0.0)
        return seen

    assert draws(seed=0, extra=1) == draws(seed=0, extra=5)
    assert len({*draws(seed=0, extra=1), *draws(seed=1, extra=1)}) == 6


def test_the_callers_random_numbers_are_left_alone():
    model = fresh_model()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(model)
    assert torch.rand(3).equal(expected)


def test_the_best_weights_are_kept():
    nats = iter([3.0, 1.0, 2.0])
    moments = []

    def validate(averaged):
        moments.append([weight.clone() for weight in averaged.parameters()])
        return next(nats)

    model, result = run(validate=validate)
    assert (result.best_step, result.best_nll, result.final_nll) == (10, 1.0, 2.0)
    assert all(a.equal(b) for a, b in zip(model.parameters(), moments[1], strict=True))
    assert not all(a.equal(b) for a, b in zip(moments[1], moments[2], strict=True))


def test_the_average_is_of_the_weights_of_each_step():
    """Decay 0.5, and (1 + s) / (10 + s) while that is less: 0.1, 2/11, 3/12."""
    model = fresh_model()
    mean = model.lm_head.weight.detach().clone()
    final = []

    def follow(progress):
        decay = min(0.5, progress.step / (9 + progress.step))
        mean.mul_(decay).add_(model.lm_head.weight.detach(), alpha=1 - decay)
        if progress.step == 3:
            final.append(model.lm_head.weight.detach().clone())

    run(model, callback=follow, num_steps=3, warmup_steps=0)
    torch.testing.assert_close(model.lm_head.weight.detach(), mean, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(final[0], mean, atol=1e-4)


def test_a_callback_can_stop_the_run():
    def stop(progress):
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(callback=stop)


def test_bfloat16_keeps_float32_weights():
    model, result = run(bfloat16=True, num_steps=40)
    assert next(model.parameters()).dtype == torch.float32
    assert result.best_nll < 0.7 * math.log(16)
    assert result.best_nll != run(num_steps=40)[1].best_nll  # the option does something


def test_rate_rises_and_falls():
    options = TrainingOptions(num_steps=110, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate(step, options) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.001
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_batches_go_through_all_images_again_and_again():
    def batch(step, seed=0):
        return batch_indices(step, num_images=10, batch_size=4, seed=seed).tolist()

    drawn = list(chain.from_iterable(batch(step) for step in range(5)))
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]
    assert batch(3) == batch(3)
    assert batch(0) != batch(0, seed=1)
    large = batch_indices(0, num_images=3, batch_size=7, seed=0)
    assert np.bincount(large, minlength=3).min() >= 2


def test_decay_is_for_matrices_only():
    model = fresh_model()
    decayed, rest = trainer._build_optimizer(model, TrainingOptions(num_steps=1, weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    assert (decayed["betas"], rest["betas"]) == ((0.9, 0.95), (0.9, 0.95))
    names = {id(weight): name for name, weight in model.named_parameters()}
    assert {names[id(weight)] for weight in decayed["params"]} == {
        "lm_head.weight",
        *(
            f"transformer.h.{block}.{name}.weight"
            for block in range(2)
            for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        ),
    }
    assert len(decayed["params"]) + len(rest["params"]) == len(names)


def test_long_gradients_are_shortened(monkeypatch):
    limits = []
    clip = trainer.clip_grad_norm_
    monkeypatch.setattr(trainer, "clip_grad_norm_", lambda weights, limit: limits.append(limit) or clip(weights, limit))
    run(num_steps=2, max_grad_norm=0.25)
    assert limits == [0.25, 0.25]


def test_a_loss_that_is_no_number_ends_the_run():
    model = fresh_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="the loss of step 1 is nan: lower the learning rate"):
        run(model)


def test_no_images():
    with pytest.raises(ValueError, match="no images to train on"):
        train(
            fresh_model(),
            STRIPES[:0],
            TrainingOptions(num_steps=1),
            objective=autoregressive_loss,
            validate=lambda _: 0.0,
        )


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("num_steps", 0, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("validate_every", -1, "at least 1"),
        ("learning_rate", 0.0, "greater than 0"),
        ("learning_rate", math.nan, "greater than 0"),
        ("max_grad_norm", -1.0, "greater than 0"),
        ("warmup_steps", -1, "at least 0"),
        ("weight_decay", -0.1, "at least 0"),
        ("weight_decay", math.inf, "finite"),
        ("seed", -1, "at least 0"),
        ("beta1", 1.0, r"in \[0, 1\)"),
        ("beta2", -0.1, r"in \[0, 1\)"),
        ("average_decay", 1.0, r"in \[0, 1\)"),
    ],
)
def test_options_that_make_no_sense(name, value, allowed):
    with pytest.raises(ValueError, match=rf"^{name} is {value}: it must .*{allowed}"):
        TrainingOptions(**{"num_steps": 1, name: value})
