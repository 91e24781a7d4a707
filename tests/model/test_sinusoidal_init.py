import math

import pytest
import torch

from helpers import tiny_config
from imagegpt import ImageGPTForCausalImageModeling
from imagegpt.model.sinusoidal_init import sinusoidal_init_

HEIGHT, WIDTH = 3, 5
GREYS = torch.linspace(-1, 1, 16).unsqueeze(1).expand(16, 3)


def waving(width=64, size=(HEIGHT, WIDTH), seed=0):
    """Embeddings of positions and colours before and after."""
    config = tiny_config(n_embd=width, n_head=2, n_positions=math.prod(size), vocab_size=17, init_scheme="openai")
    model = ImageGPTForCausalImageModeling(config)
    tables = model.transformer.wpe.weight, model.transformer.wte.weight
    before = [table.detach().clone() for table in tables]
    torch.manual_seed(seed)
    sinusoidal_init_(model, GREYS, size)
    return before, [table.detach().clone() for table in tables]


def test_rms_is_one():
    _, (positions, colors) = waving()
    assert torch.allclose(positions.square().mean(1), torch.ones(15), atol=1e-5)
    assert torch.allclose(colors[:16].square().mean(1), torch.ones(16), atol=1e-5)


def test_similarity_depends_only_on_offset():
    """Inner products of positions depend on the row and column offset, and are largest at offset 0."""
    _, (positions, _) = waving()
    products = positions @ positions.T
    seen = {}
    for one in range(15):
        for other in range(15):
            way = (other // WIDTH - one // WIDTH, other % WIDTH - one % WIDTH)
            seen.setdefault(way, []).append(products[one, other].item())
    for values in seen.values():
        assert values == pytest.approx([values[0]] * len(values), abs=1e-3)
    assert all(values[0] < seen[0, 0][0] - 1 for way, values in seen.items() if way != (0, 0))
    assert seen[1, 0][0] > seen[2, 0][0]
    assert seen[0, 1][0] > seen[0, 3][0]


def test_similar_colors_have_similar_embeddings():
    _, (_, colors) = waving(width=256)
    products = colors[:16] @ colors[:16].T
    assert products[4, 5] > products[4, 6] > products[4, 12]
    assert products[4, 4] > products[4, 5] + 10


def test_start_token_is_unchanged():
    (_, before), (_, after) = waving()
    assert torch.equal(before[16], after[16])


def test_remaining_channels_are_unchanged():
    before, (positions, colors) = waving(width=10)
    assert torch.equal(before[0][:, 8:], positions[:, 8:])
    assert positions[:, :8].square().mean() == pytest.approx(1, abs=1e-5)
    assert colors[:16].square().mean() == pytest.approx(1, abs=1e-5)


def test_init_is_seeded():
    _, (_, first) = waving(seed=1)
    _, (_, again) = waving(seed=1)
    _, (_, other) = waving(seed=2)
    assert torch.equal(first[:16], again[:16])
    assert not torch.equal(first[:16], other[:16])
