"""The C++ step against the model in float64, at sizes that are not multiples of tiles or registers."""

import copy

import pytest
import torch

from helpers import randomize
from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling
from imagegpt.sampling.backends.base import StepBackend
from imagegpt.sampling.packed_linear import PackedLinear
from imagegpt.sampling.plan import ExecutionPlan

# Keys and values are rounded to the precision (measured: 4e-7, 1.1e-3 and 3.6e-3). With AVX-512 BF16, the inputs of
# narrow weights are rounded as well (2.2e-3 more).
_ROUNDS_INPUTS = torch.cpu._is_avx512_bf16_supported()
TOLERANCES = {"float32": 2e-6, "bfloat16": 4e-3 if _ROUNDS_INPUTS else 2e-3, "int8": 6e-3 if _ROUNDS_INPUTS else 5e-3}
PRECISIONS = list(TOLERANCES)
# Each head width is compiled, in each precision.
SLOW_SIZES = [pytest.param(name, marks=pytest.mark.slow) for name in ("heads_of_8", "heads_of_64", "heads_of_130")]
SOME_SIZES = ["heads_of_3", "heads_of_20", "heads_of_33", *SLOW_SIZES]
SIZES = {
    "heads_of_3": {"n_embd": 6, "n_head": 2, "n_inner": 7, "vocab_size": 4},
    "heads_of_8": {"n_embd": 24, "n_head": 3, "n_inner": 41, "vocab_size": 18},
    "heads_of_20": {"n_embd": 40, "n_head": 2, "n_inner": 33, "vocab_size": 33},
    "heads_of_33": {"n_embd": 66, "n_head": 2, "n_inner": 131, "vocab_size": 34},
    "heads_of_64": {"n_embd": 128, "n_head": 2, "n_inner": 96, "vocab_size": 130},
    "heads_of_130": {"n_embd": 260, "n_head": 2, "n_inner": 1, "vocab_size": 67},
}
NUM_PIXELS = 21


def model_of(size, **more):
    config = ImageGPTConfig(**{"n_positions": NUM_PIXELS, "n_layer": 2, **SIZES[size], **more})
    return randomize(ImageGPTForCausalImageModeling(config)).eval()


def plan_of(model, precision):
    return ExecutionPlan.choose(model, precision=precision, backend="cpp")


def exact_model(model, plan):
    """The model in float64, with the unpacked weights of the plan."""
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        for name, packed in plan.model.named_modules():
            if isinstance(packed, PackedLinear):
                exact.get_submodule(name).weight.copy_(packed.dense_weight())
    return exact


def tokens_of(model, num_images):
    """(images, pixels) tokens, the start token first."""
    tokens = torch.randint(model.config.num_colors, (num_images, NUM_PIXELS))
    tokens[:, 0] = model.config.num_colors
    return tokens


def stepped(plan, tokens, lengths, prompts=None):
    """The logits of all pixels after the prompts, stepping by these lengths in turn."""
    num_images = len(tokens)
    backend = plan.make_backend(num_images, NUM_PIXELS)
    start = 0 if prompts is None else prompts
    for row in range(num_images):
        backend.admit(row, tokens[row, 1 : 1 + start])
    logits = []
    while start < NUM_PIXELS:
        length = min(lengths[len(logits) % len(lengths)], NUM_PIXELS - start)
        positions = torch.arange(start, start + length).expand(num_images, -1)
        start += length
        fed = tokens[:, positions[0]]
        logits.append(backend.step(fed, positions, range(num_images), start))
    return torch.cat(logits, dim=1)


def error(logits, exact):
    return ((logits - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", SOME_SIZES)
@torch.no_grad()
def test_sizes(size, precision):
    model = model_of(size)
    plan, tokens = plan_of(model, precision), tokens_of(model, 3)
    exact = exact_model(model, plan)(tokens, use_cache=False).logits
    assert error(stepped(plan, tokens, [1]), exact) < TOLERANCES[precision]
    assert error(stepped(plan, tokens, [2, 5, 1, 3]), exact) < TOLERANCES[precision]
    assert error(stepped(plan, tokens, [1, 4], prompts=6), exact[:, 6:]) < TOLERANCES[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
@torch.no_grad()
def test_rows(precision):
    """A row is the same, bit for bit, in any batch and with any number of threads."""
    model = model_of("heads_of_33", n_layer=1)
    plan, tokens = plan_of(model, precision), tokens_of(model, 40)
    exact = exact_model(model, plan)(tokens, use_cache=False).logits
    alone = torch.cat([stepped(plan, tokens[image : image + 1], [1]) for image in range(40)])
    assert error(alone, exact) < TOLERANCES[precision]
    try:
        torch.set_num_threads(3)  # the tuner starts with all threads or one
        for num_images in (*range(1, 21), 40):
            assert torch.equal(stepped(plan, tokens[:num_images], [2, 7, 12]), alone[:num_images]), num_images
        assert torch.equal(stepped(plan, tokens, [1]), alone)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(stepped(plan, tokens[:1], [NUM_PIXELS]), alone[:1])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("prompts", [1, 5, 20])
@torch.no_grad()
def test_shared_prompts(precision, prompts):
    """Images that share a prompt get the same logits as with a prompt of their own."""
    model = model_of("heads_of_33", n_layer=1)
    plan, tokens = plan_of(model, precision), tokens_of(model, 6)
    tokens[1:4, : prompts + 1] = tokens[0, : prompts + 1]
    together = stepped(plan, tokens, [1, 3], prompts)
    alone = torch.cat([stepped(plan, tokens[image : image + 1], [1], prompts) for image in range(6)])
    assert torch.equal(together, alone)
    exact = exact_model(model, plan)(tokens, use_cache=False).logits[:, prompts:]
    assert error(alone, exact) < TOLERANCES[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "changes",
    [
        {"use_bias": False},
        {"pruned_heads": {0: [1], 1: [0, 2]}},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"layer_norm_epsilon": 0.5},
    ],
    ids=str,
)
@torch.no_grad()
def test_variants(changes, precision):
    model = model_of("heads_of_8", **changes)
    plan, tokens = plan_of(model, precision), tokens_of(model, 3)
    exact = exact_model(model, plan)(tokens, use_cache=False).logits
    has_large_scores = "scale_attn_weights" in changes  # rounding matters more
    assert error(stepped(plan, tokens, [1, 2]), exact) < (1 + has_large_scores) * TOLERANCES[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
@torch.no_grad()
def test_large_scores(precision):
    """The exponential must not overflow: weights far below the largest become 0."""
    model = model_of("heads_of_20", n_layer=1)
    model.transformer.h[0].attn.c_attn.weight[:, : 2 * 40] *= 100  # queries and keys
    plan, tokens = plan_of(model, precision), tokens_of(model, 3)
    exact = exact_model(model, plan)(tokens, use_cache=False).logits
    logits = stepped(plan, tokens, [1])
    assert logits.isfinite().all()
    if precision == "float32":  # narrower dtypes round these scores by more than their differences
        assert error(logits, exact) < 2e-3


PLACES = ["wte", "wpe", "ln_f", "h.0.ln_1", "h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_fc", "h.0.mlp.c_proj"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("place", PLACES)
@torch.no_grad()
def test_nan_and_infinity_propagate(place, wrong, precision):
    model = model_of("heads_of_8")
    weight = model.transformer.get_submodule(place).weight
    column = 50 if place.endswith("c_attn") else 3  # of the values: infinite scores may get a weight of 0
    weight.view(-1, weight.shape[-1])[0 if place == "wpe" else slice(None), column] = wrong
    logits = stepped(plan_of(model, precision), tokens_of(model, 2), [1])
    assert not logits.isfinite().all(dim=-1).any(dim=0)[0 if place == "wpe" else slice(None)].any()


@pytest.mark.parametrize("num_colors", [2, 3, 8, 17, 130])
@pytest.mark.parametrize(("num_images", "num_fed"), [(1, 1), (3, 5)])
@torch.no_grad()
def test_drafts(num_colors, num_images, num_fed):
    """As in torch: ties go to the first colour, excluded ones never win."""
    backend = plan_of(model_of("heads_of_3", vocab_size=num_colors + 1), "float32").make_backend(1, 2)
    scores = torch.randint(-2, 3, (num_images, num_fed, num_colors)).float()
    scores[..., : num_colors // 2] = -torch.inf
    bigrams = torch.randint(-1, 2, (num_colors, num_colors)).float()
    fed = torch.randint(num_colors, (num_images, num_fed))
    fed[:, 0] = num_colors  # the start token may come first
    positions = torch.arange(num_fed).clamp(max=3).expand(num_images, -1)  # the last one may repeat
    pixels = backend.redraft(scores, fed, positions, bigrams)
    assert torch.equal(pixels, StepBackend.redraft(backend, scores, fed, positions, bigrams))


@pytest.mark.slow  # each compiles all kernels
def test_other_processors(run_for_processor):
    """The tests above, for some of the sizes."""
    chosen = "rows or variants or sizes and (of_3 or of_33) or prompts or nan or drafts"
    assert "skipped" not in run_for_processor(__file__, chosen)
