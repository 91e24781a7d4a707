"""Parity of all attention implementations with the float64 reference.

"eager", "sdpa", "flex_attention" and "kernels" are backends of the model, "cached" and "cpp" those of sampling, which
feed one pixel after the other.
"""

import pytest
import torch

import oracle
from helpers import randomize, tiny_config
from imagegpt import ImageGPTForCausalImageModeling
from imagegpt.sampling import ExecutionPlan

NUM_PIXELS = 70  # more than a block of the kernels, and than what sampling looks at first
OF_MODEL = ["eager", "sdpa", "flex_attention", "kernels"]
OF_SAMPLING = {"cached": "torch", "cpp": "cpp"}
CASES = {
    "two heads of 16": {"n_head": 2},
    "one head of 32": {"n_head": 1},
    "heads of 8": {"n_head": 4},
    "heads of 15": {"n_head": 2, "n_embd": 30},
    "scores scaled by layer": {"n_head": 2, "scale_attn_by_inverse_layer_idx": True},
    "scores not scaled": {"n_head": 2, "scale_attn_weights": False},
    "no biases": {"n_head": 2, "use_bias": False},
    "bidirectional": {"n_head": 2, "is_causal": False},
    "scores in float32": {"n_head": 2, "reorder_and_upcast_attn": True},
}
WITH_FLEX = ("two heads of 16", "scores scaled by layer", "bidirectional")
TOLERANCE = 1e-5  # float32 was off by 2e-6 at most; the cases differ from each other by 1e-2 and more


def model_of(case):
    return randomize(ImageGPTForCausalImageModeling(tiny_config(n_positions=NUM_PIXELS, **CASES[case]))).eval()


def tokens_of(model):
    tokens = torch.randint(model.config.num_colors, (3, NUM_PIXELS), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = model.config.sos_token_id
    return tokens


def largest_error(logits, expected):
    return (logits.double() - torch.from_numpy(expected)).abs().max().item()


def backends_and_cases():
    """All backends and cases; flex_attention only with some, because compiling each takes seconds."""
    for backend in [*OF_MODEL, *OF_SAMPLING]:
        is_flex = backend == "flex_attention"
        for case in WITH_FLEX if is_flex else CASES:
            yield pytest.param(backend, case, marks=[pytest.mark.slow] if is_flex else [])


@pytest.mark.parametrize(("backend", "case"), list(backends_and_cases()))
def test_logits_match_reference(backend, case, with_training_kernels):
    model = model_of(case)
    tokens = tokens_of(model)
    expected = oracle.logits(model, tokens)
    if backend in OF_MODEL:
        model.set_attn_implementation(backend)
        with torch.no_grad():
            assert largest_error(model(tokens).logits, expected) < TOLERANCE
    elif model.config.is_causal:
        assert largest_error(fed_one_by_one(model, tokens, OF_SAMPLING[backend]), expected) < TOLERANCE
    else:
        with pytest.raises(ValueError, match="bidirectional"):
            ExecutionPlan.choose(model, backend=OF_SAMPLING[backend])


@torch.no_grad()
def fed_one_by_one(model, tokens, backend):
    step = ExecutionPlan.choose(model, backend=backend, precision="float32").make_backend(len(tokens), NUM_PIXELS)
    rows = range(len(tokens))
    for row in rows:
        step.admit(row, tokens[row, :0])
    columns = [step.step(tokens[:, [p]], torch.full((len(rows), 1), p), rows, p + 1).clone() for p in range(NUM_PIXELS)]
    return torch.cat(columns, dim=1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", ["sdpa", "kernels"])
def test_gradients_match_reference(backend, case, with_training_kernels):
    model, exact = model_of(case), model_of(case).double()
    model.set_attn_implementation(backend)
    exact.set_attn_implementation("eager")
    tokens = tokens_of(model)
    weights = [list(one.transformer.h.parameters()) for one in (model, exact)]
    losses = [one(tokens).logits.square().mean() for one in (model, exact)]
    pairs = zip(*map(torch.autograd.grad, losses, weights), strict=True)
    for (name, _), (mine, expected) in zip(model.transformer.h.named_parameters(), pairs, strict=True):
        assert (mine.double() - expected).norm() <= 2e-5 * expected.norm() + 1e-9, name


@pytest.mark.parametrize("backend", ["eager", "sdpa", "kernels"])
def test_cache_with_padding(backend, with_training_kernels):
    """Two chunks through a cache, and one image with left padding."""
    model = model_of("two heads of 16")
    tokens, mask = tokens_of(model), torch.ones(3, NUM_PIXELS, dtype=torch.int64)
    mask[0, :9] = 0
    allowed = mask[:, None].bool() & torch.ones(NUM_PIXELS, NUM_PIXELS, dtype=torch.bool).tril()
    allowed[0, :9, 0] = True  # what padding sees does not matter, but the definition wants something
    expected = oracle.logits(model, tokens, allowed=allowed.numpy())
    model.set_attn_implementation(backend)
    with torch.no_grad():
        first = model(tokens[:, :33], attention_mask=mask[:, :33], use_cache=True)
        second = model(tokens[:, 33:], attention_mask=mask, past_key_values=first.past_key_values)
    logits = torch.cat([first.logits, second.logits], dim=1)
    assert largest_error(logits[0, 9:], expected[0, 9:]) < TOLERANCE
    assert largest_error(logits[1:], expected[1:]) < TOLERANCE
