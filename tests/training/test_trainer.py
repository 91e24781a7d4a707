import json
import math
from typing import NamedTuple

import pytest
import torch

from imagegpt.data.rng import batch_indices
from imagegpt.model.losses import autoregressive_loss
from imagegpt.training import trainer as trainer_module
from imagegpt.training.objectives import ModelWithObjective, Objective
from imagegpt.training.trainer_state import TrainerState
from stripes import (
    STRIPES,
    make_module,
    make_recipe,
    make_trainer,
    same_weights,
    stop_after,
    weights_of,
)

LN16 = math.log(16)


class Outcome(NamedTuple):
    """How a run ended."""

    status: str
    state: TrainerState


class CustomObjective(Objective):
    """The autoregressive objective as a function of the model and the batch."""

    name = "custom"

    def __init__(self, function):
        self.loss = function

    def loss(self, model, batch):
        raise NotImplementedError("replaced by the function")


def run(recipe=None, *, module=None, **options):
    """The model after a run, and how it ended."""
    module = module or make_module()
    trainer = make_trainer(recipe, module=module, **options)
    status = trainer.train()
    return module.model, Outcome(status, trainer.state)


def training(**fields):
    return make_recipe(training=fields)


def test_the_loss_goes_down():
    told = []
    model, outcome = run(training(num_steps=60), on_step=told.append)
    assert told[0].metrics["loss"] == pytest.approx(LN16, abs=1e-6)
    assert told[-1].metrics["loss"] < 0.5 * LN16
    assert outcome.status == "completed"
    assert outcome.state.best["loss"] < 0.5 * LN16
    assert not model.training


def test_each_step_is_told():
    told = []
    run(on_step=told.append)
    assert [step.step for step in told] == list(range(1, 13))
    assert [step.step for step in told if step.validation is not None] == [5, 10, 12]
    assert [step.images for step in told] == [8 * step for step in range(1, 13)]
    times = [step.elapsed_s for step in told]
    assert times == sorted(times)
    assert told[1].learning_rate == 0.003 > told[2].learning_rate * 0.999 > told[3].learning_rate
    assert all(step.grad_norm > 0 for step in told)


def test_a_seed_means_the_same_bits():
    first, _ = run()
    torch.manual_seed(99)  # of no consequence
    again, _ = run()
    other, _ = run(training(seed=1))
    assert same_weights(first, again)
    assert not same_weights(first, other)


def drawing(extra):
    """An objective that draws as dropout does, and then some, and what it drew."""
    drawn = []

    def objective(model, batch):
        drawn.append(torch.rand(()).item())
        torch.rand(extra)
        return {"loss": autoregressive_loss(model, batch.ids)}

    return ModelWithObjective(make_module().model, CustomObjective(objective)), drawn


def test_dropout_is_a_function_of_seed_and_step():
    """What is drawn must not depend on what was drawn before the step."""
    first, second, third = drawing(1), drawing(5), drawing(1)
    run(training(num_steps=3), module=first[0])
    run(training(num_steps=3), module=second[0])
    run(training(num_steps=3, seed=1), module=third[0])
    assert first[1] == second[1]
    assert len({*first[1], *third[1]}) == 6


def test_the_parts_of_a_step_have_dropout_of_their_own():
    module, drawn = drawing(1)
    run(training(num_steps=2, warmup_steps=0, micro_batch_size=2), module=module)
    assert len(set(drawn)) == 8


def test_the_callers_random_numbers_are_left_alone():
    module = make_module()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(module=module)
    assert torch.rand(3).equal(expected)


def test_the_best_validation_is_told_with_its_weights_in_place():
    nats, moments = iter([3.0, 1.0, 2.0]), []
    module = make_module()

    def see(scores, is_best):
        moments.append((scores["loss"], is_best, weights_of(module.model), module.model.training))

    seen = []
    trainer = make_trainer(module=module, validate=lambda: {"loss": next(nats)}, on_validation=see, on_step=seen.append)
    trainer.train()
    assert [moment[:2] for moment in moments] == [(3.0, True), (1.0, True), (2.0, False)]
    assert [step.validation for step in seen if step.validation] == [{"loss": 3.0}, {"loss": 1.0}, {"loss": 2.0}]
    assert not any(moment[3] for moment in moments)
    assert (trainer.state.best_step, trainer.state.best, trainer.state.last) == (
        10,
        {"loss": 1.0},
        {"loss": 2.0},
    )
    assert same_weights(moments[2][2], trainer.ema.weights)
    assert not same_weights(moments[2][2], module.model)  # the run itself goes on with its own


def test_training_goes_on_with_its_own_weights_after_a_validation():
    assert same_weights(run()[0], run(make_recipe(monitoring={"validate_every": 1}))[0])


def test_the_average_follows_every_step():
    module, mean = make_module(), []

    def follow(step):
        weight = module.model.lm_head.weight.detach()
        decay = min(0.5, step.step / (9 + step.step))
        mean.append(weight * (1 - decay) + decay * (mean[-1] if mean else start))

    start = module.model.lm_head.weight.detach().clone()
    trainer = make_trainer(training(num_steps=3), module=module, on_step=follow)
    trainer.train()
    torch.testing.assert_close(trainer.ema.weights["lm_head.weight"], mean[-1], rtol=1e-5, atol=1e-7)
    assert not torch.allclose(module.model.lm_head.weight.detach(), mean[-1], atol=1e-4)


def test_a_callback_can_stop_the_run():
    def stop(step):
        if step.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(on_step=stop)


def test_bfloat16_keeps_float32_weights():
    model, outcome = run(training(precision="bfloat16", num_steps=40))
    assert next(model.parameters()).dtype == torch.float32
    assert outcome.state.best["loss"] < 0.7 * LN16
    assert outcome.state.best != run(training(num_steps=40))[1].state.best  # the option does something


def test_long_gradients_are_shortened(monkeypatch):
    limits, told = [], []
    clip = trainer_module.clip_grad_norm_
    monkeypatch.setattr(
        trainer_module, "clip_grad_norm_", lambda weights, limit: limits.append(limit) or clip(weights, limit)
    )
    run(training(num_steps=2, warmup_steps=0, max_grad_norm=0.25), on_step=told.append)
    assert limits == [0.25, 0.25]
    assert told[0].grad_norm > 0.25  # before it was shortened


def losses_and_weights(recipe, **config):
    told = []
    model, _ = run(recipe, module=make_module(**{"resid_pdrop": 0.0, **config}), on_step=told.append)
    return [step.metrics["loss"] for step in told], model


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(micro_batch_size):
    expected, whole = losses_and_weights(training(num_steps=50))
    losses, parts = losses_and_weights(training(num_steps=50, micro_batch_size=micro_batch_size))
    assert losses == pytest.approx(expected, abs=1e-4)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3)  # Adam divides by the square of rounding, at first


def gradients(checkpointing):
    recipe = training(gradient_checkpointing=checkpointing)
    module = make_module()  # with dropout: what is computed again must drop the same units
    trainer = make_trainer(recipe, module=module)
    trainer._compute_gradients(next(trainer._iterate_batches()))
    assert module.model.transformer.gradient_checkpointing is checkpointing
    return [weight.grad for weight in module.model.parameters()]


def test_gradient_checkpointing_gives_the_same_gradients():
    assert all(a.equal(b) for a, b in zip(gradients(False), gradients(True), strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute")  # torch's, while it compiles
def test_compiled_blocks_compute_the_same():
    expected, _ = losses_and_weights(training(num_steps=50))
    losses, model = losses_and_weights(training(num_steps=50, compile=True))
    assert losses == pytest.approx(expected, abs=1e-4)
    assert all(block._compiled_call_impl is not None for block in model.transformer.h)


def broken_loss():
    module = make_module()
    with torch.no_grad():
        module.model.lm_head.weight.fill_(math.nan)
    return module


def test_a_loss_that_is_no_number_ends_the_run():
    with pytest.raises(FloatingPointError, match=r"the loss of step 1 is nan: lower training\.learning_rate"):
        run(module=broken_loss())


def infinite_gradients(*steps):
    """A loss that is finite at some steps (from 0) whose gradients are not."""
    seen = []

    def objective(model, batch):
        seen.append(len(seen))
        total = autoregressive_loss(model, batch.ids)
        if seen[-1] in steps:
            total = total + (0 * model.lm_head.weight.sum()).sqrt()  # the root's slope at 0 is infinite
        return {"loss": total}

    return ModelWithObjective(make_module().model, CustomObjective(objective))


def all_finite(weights):
    return all(weight.isfinite().all() for weight in weights)


class TestNotFinite:
    RECIPE = make_recipe(monitoring={"checkpoint_every": 2})

    def test_gradients_end_the_run_before_they_reach_the_weights(self, tmp_path):
        module = infinite_gradients(5)
        trainer = make_trainer(self.RECIPE, module=module, folder=tmp_path)
        with pytest.raises(
            FloatingPointError, match=r"the gradients of step 6 are not finite: lower training\.learning"
        ):
            trainer.train()
        assert all_finite([*module.model.parameters(), *trainer.ema.weights.values()])
        again = make_trainer(self.RECIPE, module=make_module(), folder=tmp_path)
        assert again.resume()
        assert again.state.step == 4
        assert again.train() == "completed"

    def test_gradients_are_skipped_like_a_spike(self, tmp_path):
        recipe = make_recipe(monitoring={"checkpoint_every": 2, "spike_nats": 5.0})
        module, told = infinite_gradients(5), []
        _, outcome = run(recipe, module=module, folder=tmp_path, on_step=told.append)
        assert (outcome.status, outcome.state.rollbacks, outcome.state.skipped_batches) == ("completed", 1, 2)
        assert [step.step for step in told] == [*range(1, 6), *range(5, 13)]
        assert all_finite(module.model.parameters())

    @pytest.mark.parametrize("where", ["weights", "average", "moments"])
    def test_no_checkpoint_that_is_not_finite_is_saved(self, where, tmp_path):
        module = make_module()

        def spoil(step):
            if step.step == 4:
                moments = trainer._optimizers[0].state[module.model.lm_head.weight]["exp_avg"]
                places = {"weights": module.model.lm_head.weight, "moments": moments}
                places["average"] = trainer.ema.weights["lm_head.weight"]
                with torch.no_grad():
                    places[where][0, 0] = math.inf

        trainer = make_trainer(self.RECIPE, module=module, folder=tmp_path, on_step=spoil)
        with pytest.raises(FloatingPointError, match="the weights after step 4 are not finite"):
            trainer.train()
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]

    def test_weights_that_are_not_finite_are_rolled_back(self, tmp_path):
        spoiled = []

        def spoil(step):
            if step.step == 4 and not spoiled:
                spoiled.append(step)
                with torch.no_grad():
                    module.model.lm_head.weight[0, 0] = math.inf

        module = make_module()
        recipe = make_recipe(monitoring={"checkpoint_every": 2, "spike_nats": 5.0})
        _, outcome = run(recipe, module=module, folder=tmp_path, on_step=spoil)
        assert (outcome.status, outcome.state.rollbacks, outcome.state.skipped_batches) == ("completed", 1, 2)
        assert all_finite(module.model.parameters())


class TestPatience:
    RECIPE = make_recipe(training={"num_steps": 40}, monitoring={"validate_every": 2, "patience": 3})

    @staticmethod
    def scores(*values):
        given = iter(values)
        return lambda: {"loss": next(given)}

    def test_it_ends_when_validation_gets_no_better(self, tmp_path):
        validate = self.scores(5.0, 4.0, 4.0, 3.0, 3.5, 3.1, 3.0)
        _, outcome = run(self.RECIPE, validate=validate, folder=tmp_path)
        assert outcome.status == "early_stopped"
        assert (outcome.state.step, outcome.state.best_step) == (14, 8)

    def test_a_run_that_ended_does_not_go_on(self, tmp_path):
        run(self.RECIPE, validate=self.scores(1.0, 2.0, 2.0, 2.0), folder=tmp_path)
        trainer = make_trainer(self.RECIPE, module=make_module(), folder=tmp_path)
        assert trainer.resume()
        assert (trainer.train(), trainer.state.step) == ("early_stopped", 8)


class TestResuming:
    RECIPE = make_recipe(monitoring={"checkpoint_every": 4})

    def undisturbed(self):
        module, told = make_module(), []
        trainer = make_trainer(self.RECIPE, module=module, on_step=told.append)
        trainer.train()
        return module.model, trainer.ema.weights, trainer.state, told

    @pytest.mark.parametrize("step", [1, 4, 5, 7, 11, 12])
    def test_a_stopped_run_goes_on_to_the_same_bits(self, step, tmp_path):
        model, average, state, told = self.undisturbed()
        _, outcome = run(self.RECIPE, folder=tmp_path, **stop_after(step))
        assert (outcome.status, outcome.state.step) == ("stopped", step)
        torch.manual_seed(step)  # another process
        module, rest = make_module(seed=1), []
        trainer = make_trainer(self.RECIPE, module=module, folder=tmp_path, on_step=rest.append)
        assert trainer.resume()
        trainer.train()
        assert same_weights(model, module.model)
        assert same_weights(average, trainer.ema.weights)
        assert [one.metrics for one in rest] == [one.metrics for one in told[step:]]
        assert [one.validation for one in rest] == [one.validation for one in told[step:]]
        forget_time = {"trained_s": 0}
        assert {**trainer.state.to_json(), **forget_time} == {**state.to_json(), **forget_time}

    def test_a_killed_run_goes_on_from_its_last_checkpoint(self, tmp_path):
        def die(step):
            if step.step == 11:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(self.RECIPE, folder=tmp_path, on_step=die)
        module, told = make_module(), []
        trainer = make_trainer(self.RECIPE, module=module, folder=tmp_path, on_step=told.append)
        trainer.resume()
        trainer.train()
        assert [step.step for step in told] == [9, 10, 11, 12]
        assert same_weights(self.undisturbed()[0], module.model)

    def test_without_a_checkpoint_it_begins(self, tmp_path):
        assert not make_trainer(folder=tmp_path).resume()
        assert not make_trainer().resume()

    def test_stopped_before_it_began_it_does_nothing(self, tmp_path):
        module = make_module()
        before = weights_of(module.model)
        _, outcome = run(module=module, folder=tmp_path, should_stop=lambda: True)
        assert (outcome.status, outcome.state.step) == ("stopped", 0)
        assert same_weights(before, module.model)

    def test_the_state_survives_json(self):
        state = TrainerState(step=3, best_step=2, best={"loss": 1.5}, validations_since_best=1, skipped_batches=4)
        state.recent_losses.extend([1.0, 2.0])
        again = TrainerState.from_json(json.loads(json.dumps(state.to_json())))
        assert again == state
        assert again.recent_losses.maxlen == 100


def batch_names(num):
    """Which step a batch of the default recipe belongs to, by the first colours of its images."""
    steps = [batch_indices(step, num_images=24, batch_size=8, seed=0) for step in range(num)]
    names = {tuple(STRIPES[torch.from_numpy(indices), 0].tolist()): step for step, indices in enumerate(steps)}
    assert len(names) == num
    return names


class TestSpikes:
    RECIPE = make_recipe(
        training={"num_steps": 20}, monitoring={"checkpoint_every": 4, "spike_nats": 1.0, "max_rollbacks": 2}
    )

    @staticmethod
    def spiking(*spikes):
        """A loss that is infinite for the batches that come at some places of the order, and the order seen."""
        seen, names = [], batch_names(30)

        def objective(model, batch):
            seen.append(names[tuple(batch.ids[:, 0].tolist())])
            total = autoregressive_loss(model, batch.ids)
            return {"loss": total * (math.inf if seen[-1] in spikes else 1.0)}

        return ModelWithObjective(make_module().model, CustomObjective(objective)), seen

    def test_it_goes_back_and_on_with_other_images(self, tmp_path):
        module, seen = self.spiking(10)
        told = []
        _, outcome = run(self.RECIPE, module=module, folder=tmp_path, on_step=told.append)
        # Images 8 to 10 come no more: after the checkpoint at step 8 the images of what would be step 11 are next.
        assert seen == [*range(11), *range(11, 23)]
        assert [step.step for step in told] == [*range(1, 11), *range(9, 21)]
        assert (outcome.status, outcome.state.rollbacks, outcome.state.skipped_batches) == ("completed", 1, 3)
        assert all(math.isfinite(step.metrics["loss"]) for step in told)

    def test_the_weights_are_those_of_the_checkpoint(self, tmp_path):
        module, seen = self.spiking(10)
        after, before = [], {}

        def remember(module, _):
            before[len(seen)] = weights_of(module.model)

        module.register_forward_pre_hook(remember)
        run(self.RECIPE, module=module, folder=tmp_path, on_step=lambda _: after.append(weights_of(module.model)))
        assert seen[11] == 11  # the first batch after the spike
        assert same_weights(before[11], after[7])
        assert not same_weights(before[11], after[9])

    def test_a_spike_before_the_first_checkpoint_leads_back_to_the_beginning(self, tmp_path):
        module, seen = self.spiking(1)
        _, outcome = run(self.RECIPE, module=module, folder=tmp_path)
        assert seen == list(range(22))
        assert (outcome.state.step, outcome.state.skipped_batches) == (20, 2)

    def test_a_run_that_stepped_over_goes_on_to_the_same_bits(self, tmp_path):
        whole, _ = self.spiking(10)
        run(self.RECIPE, module=whole, folder=tmp_path / "whole")
        stopped, _ = self.spiking(10)
        run(self.RECIPE, module=stopped, folder=tmp_path / "parts", **stop_after(15))
        rest, seen = self.spiking(10)
        trainer = make_trainer(self.RECIPE, module=rest, folder=tmp_path / "parts")
        trainer.resume()
        trainer.train()
        assert seen == list(range(18, 23))
        assert same_weights(whole.model, rest.model)

    def test_too_many_spikes_end_the_run(self, tmp_path):
        module, _ = self.spiking(5, 7, 9)
        with pytest.raises(
            FloatingPointError, match=r"the loss of step \d+ is inf, spike number 3, of which .* allows 2"
        ):
            run(self.RECIPE, module=module, folder=tmp_path)

    def test_a_loss_far_above_the_recent_ones_is_a_spike(self):
        trainer = make_trainer(self.RECIPE)
        assert not trainer._is_spike(100.0)  # nothing to compare with yet
        trainer.state.recent_losses.extend([2.0] * 100)
        assert not trainer._is_spike(2.99)
        assert trainer._is_spike(3.01)

    def test_the_first_checkpoint_changes_nothing(self, tmp_path):
        """Torch makes a step of its own with an optimiser that has no moments yet, and Adam would count it."""
        plain, _ = run()
        saved, _ = run(make_recipe(monitoring={"spike_nats": 5.0}), folder=tmp_path)
        assert same_weights(plain, saved)

    def test_the_best_model_that_was_kept_stays_the_best(self, tmp_path):
        """Validation at step 10 is undone by a spike at step 11, but its model is in the folder."""
        module, _ = self.spiking(11)
        nats = iter([3.0, 1.0, *[2.0] * 5])
        _, outcome = run(
            make_recipe(
                training={"num_steps": 20}, monitoring={"validate_every": 5, "checkpoint_every": 8, "spike_nats": 1.0}
            ),
            module=module,
            folder=tmp_path,
            validate=lambda: {"loss": next(nats)},
        )
        assert (outcome.state.best, outcome.state.best_step) == ({"loss": 1.0}, 10)
