"""Backends: stepping through tokens in chunks of any length gives the logits of the whole model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from helpers import cache_bytes
from imagegpt.sampling import ExecutionPlan
from imagegpt.sampling.backends.pytorch import round_to_bucket
from naive import VARIANTS, prompts_of, varied_model

pytestmark = pytest.mark.usefixtures("no_grad")

BACKENDS = ["cpp", "torch"]
ONLY_IN_TORCH = ("exact gelu", "relu")


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


def opened(model, num_images, backend="cpp", precision="float32"):
    """A backend with `num_images` empty prompts."""
    plan = ExecutionPlan.choose(model, backend=backend, precision=precision)
    step = plan.make_backend(num_images, model.config.n_positions)
    for row in range(num_images):
        step.admit(row, torch.empty(0, dtype=torch.int64))
    return step


def tokens_of(model, num_images, seed=0):
    """Inputs for random images: the start token, and all pixels but the last."""
    images = torch.stack(prompts_of([model.config.n_positions] * num_images, model.config.num_colors, seed))
    return functional.pad(images[:, :-1], (1, 0), value=model.config.sos_token_id)


def feed(step, tokens, positions, rows=None):
    return step.step(tokens, positions, rows or range(len(tokens)), int(positions.max()) + 1)


def all_at_once(step, tokens):
    return feed(step, tokens, torch.arange(tokens.shape[1]).expand(tokens.shape))


def error(logits, expected):
    return ((logits - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_the_model(variant, backend):
    """Rounding was 1e-7 to 4e-7 of the logits' norm; confusing two variants changes them by at least 1e-2."""
    if backend == "cpp" and variant in ONLY_IN_TORCH:
        pytest.skip("the C++ kernels have the original activation only")
    model = varied_model(variant, num_pixels=70)
    tokens = tokens_of(model, 3)
    step = opened(model, 3, backend)
    expected = model.double()(tokens, use_cache=False).logits
    assert error(all_at_once(step, tokens), expected) < 2e-6
    one_by_one = [feed(step, tokens[:, [p]], torch.full((3, 1), p)) for p in range(70)]
    assert error(torch.cat(one_by_one, dim=1), expected) < 2e-6


@pytest.mark.parametrize("variant", ["no biases", "exact gelu", "large epsilon", "scores not scaled"])
def test_the_tolerance_distinguishes_the_variants(variant):
    """With the same weights, but different maths."""
    model, other = varied_model(), varied_model(variant)
    other.load_state_dict(model.state_dict(), strict=False)
    tokens = tokens_of(model, 3)
    assert error(all_at_once(opened(other, 3, "auto"), tokens), model(tokens, use_cache=False).logits) > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=15, deadline=None)
@given(st.data())
def test_chunks_of_any_length_give_the_same_logits(backend, data):
    """Each image has its own position; the length of a chunk is the same for all."""
    num_images = data.draw(st.integers(1, 4), label="images")
    model = varied_model("heads pruned", num_pixels=80)
    tokens = tokens_of(model, num_images, seed=data.draw(st.integers(0, 9), label="seed"))
    expected = model(tokens, use_cache=False).logits
    step = opened(model, num_images, backend)
    starts = data.draw(st.lists(st.integers(0, 40), min_size=num_images, max_size=num_images), label="starts")
    for image, start in enumerate(starts):  # fill the cache before the starts, one image at a time
        if start:
            positions = torch.arange(start).unsqueeze(0)
            feed(step, tokens[image : image + 1, :start], positions, [image])
    position = torch.tensor(starts).unsqueeze(1)
    while position.max() < 80:
        window = (position + torch.arange(data.draw(st.integers(1, 20), label="chunk"))).clamp(max=79)
        logits = feed(step, tokens.gather(1, window), window)
        wanted = expected.gather(1, window.unsqueeze(2).expand(-1, -1, expected.shape[2]))
        assert error(logits, wanted) < 2e-6
        position = window[:, -1:] + 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wrong_draft_has_no_effect_once_its_position_is_fed_again(backend):
    model = varied_model()
    tokens = tokens_of(model, 2)
    right, step = opened(model, 2, backend), opened(model, 2, backend)
    wrong = (tokens + 3) % 16
    wrong[:, :3] = tokens[:, :3]
    all_at_once(step, wrong)
    last = torch.arange(3, 16).expand(2, 13)
    feed(right, tokens[:, :3], torch.arange(3).expand(2, 3))
    logits, expected = (feed(one, tokens[:, 3:], last) for one in (step, right))
    assert torch.equal(logits, expected) if backend == "cpp" else error(logits, expected) < 2e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_fed", [1, 4])
def test_feeding_a_finished_image_again_changes_nothing(num_fed, backend):
    model = varied_model()
    tokens = tokens_of(model, 2)
    step = opened(model, 2, backend)
    all_at_once(step, tokens)
    last = torch.full((2, num_fed), 15)
    first = feed(step, tokens.gather(1, last), last)
    assert torch.equal(feed(step, tokens.gather(1, last), last), first)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_given", [1, 2, 64, 65, 99])
def test_prefilling_equals_stepping(num_given, backend):
    model = varied_model("heads pruned", num_pixels=100)
    tokens = tokens_of(model, 4)
    tokens[2:, : num_given + 1] = tokens[1, : num_given + 1]
    expected = model(tokens, use_cache=False).logits
    step = ExecutionPlan.choose(model, backend=backend).make_backend(4, 100)
    for row in (2, 0, 3, 1):
        step.admit(row, tokens[row, 1 : num_given + 1])
    for position in range(num_given, 100):
        logits = feed(step, tokens[:, [position]], torch.full((4, 1), position))
        assert error(logits, expected[:, [position]]) < 2e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_are_not_fed_keep_their_cache(backend):
    model = varied_model(num_pixels=70)
    tokens = tokens_of(model, 3)
    expected = model(tokens, use_cache=False).logits
    step = opened(model, 3, backend)
    everyone = torch.arange(30).expand(3, 30)
    feed(step, tokens[:, :30], everyone)
    for rows in ([2], [0, 2], [1]):
        logits = feed(step, tokens[rows][:, 30:33], torch.arange(30, 33).expand(len(rows), 3), rows)
        assert error(logits, expected[rows][:, 30:33]) < 2e-6


@pytest.mark.parametrize(("backend", "precision", "fraction"), [
    ("cpp", "float32", 1), ("cpp", "bfloat16", 1 / 2), ("cpp", "int8", (16 + 4) / 16 / 4),
    ("torch", "float32", 1), ("torch", "bfloat16", 1 / 2), ("torch", "int8", 1 / 2),
])  # fmt: skip
def test_keys_and_values_are_stored_in_the_chosen_precision(backend, precision, fraction):
    model = varied_model()
    step = opened(model, 2, backend, precision)
    positions = 16 if backend == "cpp" else round_to_bucket(16)
    assert cache_bytes(step) == 2 * 3 * 2 * 4 * positions * 16 * 4 * fraction
    tokens = tokens_of(model, 2)
    wrong = error(all_at_once(step, tokens), model(tokens, use_cache=False).logits)
    assert wrong < {"float32": 2e-6, "bfloat16": 0.02, "int8": 0.05}[precision]


def test_images_share_the_keys_and_values_of_their_prompt():
    model = varied_model(num_pixels=100)
    prompts = prompts_of([80, 80])
    step = ExecutionPlan.choose(model).make_backend(6, 100)
    for row in range(6):
        step.admit(row, prompts[row % 2].clone())
    numbers = 3 * 2 * 4 * 16 * 4
    assert cache_bytes(step) == numbers * (2 * 80 + 6 * 20)  # 80 is a multiple of 4, as a prefix must be
    for row in (0, 2, 4):
        step.release(row)
    assert cache_bytes(step) == numbers * (80 + 3 * 20)


def test_later_positions_are_never_attended_to():
    """Wrong drafts and longer prompts leave garbage there, which must not change a bit."""
    model = varied_model(num_pixels=100)
    tokens, logits = tokens_of(model, 3), []
    for garbage in (0.0, 1e30, -3.0):
        step = opened(model, 3, "torch")
        for tensor in (*step._keys, *step._values):
            tensor.fill_(garbage)
        first = feed(step, tokens[:, :9], torch.arange(9).expand(3, 9))
        own = torch.tensor([[9], [5], [2]])  # two images go back to earlier positions
        logits.append(torch.cat([first, feed(step, tokens.gather(1, own), own)], dim=1))
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


@pytest.mark.parametrize("room", [16, 40])
@pytest.mark.parametrize(("token", "position"), [(17, 0), (-1, 0), (0, 16), (0, -1)])
def test_invalid_tokens_and_positions_are_refused(token, position, room):
    step = ExecutionPlan.choose(varied_model(), backend="cpp").make_backend(1, room)
    step.admit(0, torch.empty(0, dtype=torch.int64))
    with pytest.raises(IndexError, match=r"^a token is outside 0 to 16, or a position is outside the cache"):
        step.step(torch.tensor([[token]]), torch.tensor([[position]]), [0], 16)


def test_a_prefix_whose_prefill_failed_is_not_shared(monkeypatch):
    """A reference to the error keeps the incomplete cache alive."""
    model = varied_model(num_pixels=70)
    (prompt,) = prompts_of([66], model.config.num_colors, 0)
    step = ExecutionPlan.choose(model, backend="cpp").make_backend(2, 70)
    with monkeypatch.context() as patch:
        patch.setattr(step, "_prefill", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError) as raised:
            step.admit(0, prompt)
    step.admit(1, prompt)
    tokens = functional.pad(prompt, (1, 0), value=model.config.sos_token_id).unsqueeze(0)
    logits = step.step(tokens[:, 66:], torch.tensor([[66]]), [1], 67)
    assert error(logits[:, 0], model.double()(tokens).logits[:, -1]) < 2e-6
    del raised


def test_an_empty_prompt_needs_no_kernel_call(monkeypatch):
    """Regression: a call without tokens woke a second thread, which took 0.2 s on a busy machine."""
    step = ExecutionPlan.choose(varied_model(), backend="cpp").make_backend(1, 16)
    monkeypatch.setattr(step, "_call_kernel", lambda *_: pytest.fail("called"))
    step.admit(0, torch.empty(0, dtype=torch.int64))
