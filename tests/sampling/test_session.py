"""A session: the state of rows between steps, and independence of the images in them."""

import pytest
import torch

from imagegpt.sampling import ExecutionPlan, SamplingRules, Session
from imagegpt.sampling import session as module
from imagegpt.sampling.backends.base import StepBackend
from imagegpt.sampling.decoders import SequentialDecoder
from imagegpt.sampling.noise import gumbel_noise, seed_tensor
from imagegpt.sampling.rules import sample_colors
from imagegpt.sampling.session import LogitsNotFiniteError

RULES = SamplingRules(temperature=0.8, top_k=4)
GREEDY = SamplingRules(temperature=0)


class FakeBackend(StepBackend):
    """Returns fixed logits of 5 colours, and records its inputs."""

    def __init__(self, logits=None):
        super().__init__(5)
        self.fed, self.released = [], []
        self._logits = torch.zeros(99, 5) if logits is None else logits

    def admit(self, row, prompt):
        self.fed.append((row, prompt.tolist()))

    def step(self, tokens, positions, rows, longest):
        self.fed.append((list(rows), tokens.tolist(), positions.tolist(), longest))
        return self._logits[positions].clone()

    def release(self, row):
        self.released.append(row)


def start_session(prompts, seeds, rules=RULES, num_pixels=4, logits=None):
    session = Session(FakeBackend(logits), SequentialDecoder(), len(prompts), num_pixels, "cpu")
    for prompt, seed in zip(prompts, seeds, strict=True):
        session.admit(torch.tensor(prompt, dtype=torch.int64), seed, rules)
    return session


def test_tokens_start_with_the_start_token_and_the_prompts():
    session = start_session([[], [3, 1], [4, 4, 4, 2]], [1, 2, 3])
    assert session.tokens.tolist() == [[5, 0, 0, 0, 0], [5, 3, 1, 0, 0], [5, 4, 4, 4, 2]]
    assert session.positions == [0, 2, 4]
    assert session.unfinished() == [0, 1]
    assert session.backend.fed == [(0, []), (1, [3, 1])], "a complete image needs no prefill"
    session.step()
    assert session.backend.fed[2] == ([0, 1], [[5], [1]], [[0], [2]], 3)
    assert session.positions == [1, 3, 4]


@pytest.mark.parametrize("chunk", [1, 40, 1 << 18])
def test_pixels_use_the_noise_of_their_image_and_position(chunk, monkeypatch):
    """For any chunk size."""
    monkeypatch.setattr(module, "_NOISE_CHUNK_ON_CPU", chunk)
    seeds, logits = [7, 2**63 + 5], torch.randn(4, 5)
    session = start_session([[], [3, 1]], seeds, logits=logits)
    while session.unfinished():
        session.step()
    noise = gumbel_noise(seed_tensor(seeds), torch.arange(4), 5)
    for image, start in ((0, 0), (1, 2)):
        expected = sample_colors(logits[start:], noise[image, start:], RULES)
        assert torch.equal(session.pixels(image)[start:], expected)
    assert session.pixels(1)[:2].tolist() == [3, 1]


def test_rows_can_have_different_rules():
    logits = torch.tensor([[0.0, 3.0, 1.0, 3.0, 2.0]]).expand(4, 5)
    alone = {}
    for rules in (RULES, GREEDY, SamplingRules(temperature=5.0)):
        session = start_session([[]], [3], rules, logits=logits)
        for _ in range(4):
            session.step()
        alone[rules] = session.pixels(0).tolist()
    session = Session(FakeBackend(logits), SequentialDecoder(), 4, 4, "cpu")
    order = [*alone, RULES]
    for rules in order:
        session.admit(torch.empty(0, dtype=torch.int64), 3, rules)
    for _ in range(4):
        session.step()
    assert [session.pixels(row).tolist() for row in range(4)] == [alone[rules] for rules in order]


def test_a_reused_row_does_not_depend_on_the_image_before():
    logits = torch.randn(4, 5)
    session = start_session([[4, 4, 4, 2], [4]], [1, 2], logits=torch.full((4, 5), torch.inf))
    session.step()
    with pytest.raises(LogitsNotFiniteError, match="logits are not finite"):
        session.release(1)
    session.release(0)
    assert session.backend.released == [1, 0]
    session.backend._logits = logits
    assert [session.admit(torch.tensor(prompt), seed, RULES) for prompt, seed in (([1], 8), ([2, 2], 9))] == [0, 1]
    fresh = start_session([[1], [2, 2]], [8, 9], logits=logits)
    for one in (session, fresh):
        while one.unfinished():
            one.step()
    assert torch.equal(session.tokens, fresh.tokens)
    for row in (0, 1):
        session.release(row)


def test_finished_rows_do_not_change():
    session = start_session([[1, 1, 1], []], [1, 2])
    session.step()
    first = session.pixels(0).clone()
    while session.unfinished():
        session.step()
    assert torch.equal(session.pixels(0), first)
    session.step()
    assert session.positions == [4, 4], "a step without unfinished rows does nothing"


def test_greedy_rows_need_no_noise():
    session = start_session([[]], [1], GREEDY, logits=torch.tensor([[0.0, 3.0, 1.0, 3.0, 2.0]]))
    session.step()
    assert session.pixels(0)[0] == 1, "ties go to the lowest index"
    assert session._noise is None


def test_admit_refuses_full_sessions_long_prompts_and_bad_seeds():
    session = start_session([[1]], [1])
    with pytest.raises(ValueError, match=r"^all 1 rows are taken: release one, or open a larger session"):
        session.admit(torch.tensor([1]), 1, RULES)
    session.release(0)
    with pytest.raises(ValueError, match=r"^the prompt has 5 pixels, but the images have only 4: shorten the prompt"):
        session.admit(torch.zeros(5, dtype=torch.int64), 1, RULES)
    with pytest.raises(ValueError, match="seed is -1"):
        session.admit(torch.tensor([1]), -1, RULES)
    assert session.admit(torch.tensor([1]), 1, RULES) == 0, "a refused image takes no row"


def test_a_row_stays_free_if_its_prefill_fails():
    session = start_session([[1]], [1])
    session.release(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session.backend, "admit", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            session.admit(torch.tensor([1]), 1, RULES)
    assert session.admit(torch.tensor([1]), 1, RULES) == 0


def test_a_row_cannot_be_released_twice():
    """Regression: a row released twice was given to two images."""
    session = start_session([[1], [2]], [1, 2])
    session.release(0)
    with pytest.raises(ValueError, match=r"^row 0 holds no image: release each row that `admit` returned once"):
        session.release(0)
    assert session.admit(torch.tensor([3]), 3, RULES) == 0
    with pytest.raises(ValueError, match="all 2 rows are taken"):
        session.admit(torch.tensor([3]), 3, RULES)


def test_statistics(tiny_model):
    session = ExecutionPlan.choose(tiny_model).open_session(3, 10)
    for given in (0, 4, 10):
        session.admit(torch.zeros(given, dtype=torch.int64), given, RULES)
    while session.unfinished():
        session.step()
    assert session.statistics.num_pixels == session.statistics.num_passes == 10 + 6
    assert session.statistics.passes_by_length == {1: 10}
    assert (session.statistics + session.statistics).passes_by_length == {1: 20}
