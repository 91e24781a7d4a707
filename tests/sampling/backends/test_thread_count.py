"""The number of threads is chosen by the clock, and follows when things change."""

from imagegpt.sampling.backends.thread_count import ThreadCount


def simulate(seconds_of, num_steps, most=4):
    count, chosen = ThreadCount(most), []
    for step in range(num_steps):
        chosen.append(count.choose())
        count.observe(chosen[-1], seconds_of(chosen[-1], step))
    return count, chosen


def test_all_threads_where_they_are_faster():
    count, chosen = simulate(lambda n, _: 1 / n, 2000)
    assert count.best == 4
    assert chosen.count(1) <= 15


def test_one_thread_where_they_wait_for_each_other():
    count, chosen = simulate(lambda n, _: 1.0 if n == 1 else 9.0, 2000)
    assert count.best == 1
    assert chosen.count(4) <= 15


def test_waiting_long_ends_a_trial():
    """Beside other programs a step may take hundreds of times as long, and a short image has few steps."""
    count, chosen = simulate(lambda n, _: 0.001 if n == 1 else 0.25, 60)
    assert count.best == 1
    assert chosen.count(4) == 1


def test_short_steps_are_for_one_thread():
    _, chosen = simulate(lambda n, _: 0.0001 / n, 500)
    assert set(chosen) == {1}


def test_it_follows_when_the_machine_becomes_busy_and_quiet_again():
    count, chosen = simulate(lambda n, step: n if 500 <= step < 1500 else 1 / n, 4000)
    assert chosen[400:500].count(4) > 90
    assert chosen[1400:1500].count(1) > 90
    assert count.best == 4


def test_a_single_slow_step_changes_nothing():
    for slow in range(6):
        count, _ = simulate(lambda n, step, slow=slow: 0.01 if step == slow else 0.001 / n, 50)
        assert count.best == 4


def test_there_is_nothing_to_choose_from_with_one_thread():
    assert simulate(lambda *_: 1.0, 100, most=1)[1] == [1] * 100
