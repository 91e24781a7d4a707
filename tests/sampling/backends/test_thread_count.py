"""The number of threads adapts to measured times."""

from imagegpt.sampling.backends.thread_count import ThreadCountTuner


def simulate(seconds_of, num_steps, max_threads=4):
    tuner, chosen = ThreadCountTuner(max_threads), []
    for step in range(num_steps):
        chosen.append(tuner.choose())
        tuner.observe(chosen[-1], seconds_of(chosen[-1], step))
    return tuner, chosen


def test_all_threads_when_they_are_faster():
    tuner, chosen = simulate(lambda n, _: 1 / n, 2000)
    assert tuner.best == 4
    assert chosen.count(1) <= 15


def test_one_thread_when_synchronising_is_slow():
    tuner, chosen = simulate(lambda n, _: 1.0 if n == 1 else 9.0, 2000)
    assert tuner.best == 1
    assert chosen.count(4) <= 15


def test_one_very_slow_step_ends_a_trial():
    """On a busy machine a step may take hundreds of times as long, and a small image has few steps."""
    tuner, chosen = simulate(lambda n, _: 0.001 if n == 1 else 0.25, 60)
    assert tuner.best == 1
    assert chosen.count(4) == 1


def test_one_thread_for_short_steps():
    _, chosen = simulate(lambda n, _: 0.0001 / n, 500)
    assert set(chosen) == {1}


def test_it_adapts_when_the_machine_becomes_busy_and_idle_again():
    tuner, chosen = simulate(lambda n, step: n if 500 <= step < 1500 else 1 / n, 4000)
    assert chosen[400:500].count(4) > 90
    assert chosen[1400:1500].count(1) > 90
    assert tuner.best == 4


def test_a_single_slow_step_has_no_effect():
    for slow in range(6):
        tuner, _ = simulate(lambda n, step, slow=slow: 0.01 if step == slow else 0.001 / n, 50)
        assert tuner.best == 4


def test_nothing_to_tune_with_one_thread():
    assert simulate(lambda *_: 1.0, 100, max_threads=1)[1] == [1] * 100
