import math

import pytest
import torch

from imagegpt.training.optimizers.muon import Muon, orthogonalize

torch.manual_seed(0)  # of the matrices below


def with_singular_values(values, n, m):
    left, _ = torch.linalg.qr(torch.randn(n, n))
    right, _ = torch.linalg.qr(torch.randn(m, m))
    middle = torch.zeros(n, m)
    middle[range(len(values)), range(len(values))] = torch.tensor(values)
    return left @ middle @ right.T


def updated(weights, gradients, **fields):
    """The weights after a step of each gradient."""
    weights = [weight.clone().requires_grad_() for weight in weights]
    num_maps = fields.pop("num_maps", 1)
    optimizer = Muon([{"params": weights, "num_maps": num_maps}], **{"lr": 1.0, "weight_decay": 0.0, **fields})
    for step in gradients:
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = gradient
        optimizer.step()
    return [weight.detach() for weight in weights]


@pytest.mark.parametrize("shape", [(4, 4), (4, 9), (9, 4)])
@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0, 1.0], [100.0, 10.0, 5.0, 2.0], [1e-3, 1e-3, 5e-4, 1e-4]])
def test_singular_values_become_one_and_vectors_stay(shape, values):
    matrix = with_singular_values(values, *shape)
    told = orthogonalize(matrix)
    assert told.shape == shape
    assert torch.linalg.svdvals(told).sub(1).abs().max() < 0.35
    # Where all singular vectors stand still, the transpose times the result is symmetric, with values above 0.
    product = matrix.T @ told
    assert torch.allclose(product, product.T, atol=1e-4 * float(product.abs().max()))
    assert torch.linalg.eigvalsh(product).min() > -1e-4 * float(product.abs().max())


def test_many_matrices_are_like_one():
    matrices = torch.randn(3, 5, 8)
    told = orthogonalize(matrices)
    for matrix, one in zip(matrices, told, strict=True):
        assert torch.allclose(orthogonalize(matrix), one, atol=1e-5)


def test_zeros_stay_zeros():
    assert not orthogonalize(torch.zeros(2, 3, 3)).any()


def test_torchs_muon_does_the_same_in_bfloat16():
    weight, gradients = torch.randn(32, 64), [[torch.randn(32, 64)] for _ in range(3)]
    [ours] = updated([weight], gradients, lr=0.1, weight_decay=0.2)
    theirs = weight.clone().requires_grad_()
    optimizer = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    for [gradient] in gradients:
        theirs.grad = gradient
        optimizer.step()
    moved = (weight - theirs.detach()).norm()
    assert moved > 1
    assert (ours - theirs.detach()).norm() < 0.01 * moved


def test_maps_side_by_side_are_kept_apart():
    weight, gradient = torch.randn(6, 18), torch.randn(6, 18)
    [together] = updated([weight], [[gradient]], num_maps=3)
    alone = [
        updated([part], [[part_gradient]])[0]
        for part, part_gradient in zip(weight.chunk(3, 1), gradient.chunk(3, 1), strict=True)
    ]
    assert torch.allclose(together, torch.cat(alone, 1), atol=1e-5)
    assert not torch.allclose(together, updated([weight], [[gradient]])[0], atol=1e-2)


def test_each_weight_gets_its_own_update_whatever_its_shape():
    weights = [torch.randn(4, 6), torch.randn(6, 4), torch.randn(4, 6)]
    gradients = [torch.randn_like(weight) for weight in weights]
    together = updated(weights, [gradients])
    for weight, gradient, one in zip(weights, gradients, together, strict=True):
        assert torch.allclose(updated([weight], [[gradient]])[0], one, atol=1e-5)


def test_a_weight_without_a_gradient_stands_still():
    weight = torch.randn(3, 3)
    assert torch.equal(updated([weight], [[None]], weight_decay=0.5)[0], weight)


def test_decay_takes_off_a_share():
    weight = torch.randn(3, 3)
    [left] = updated([weight], [[torch.zeros(3, 3)]], lr=0.1, weight_decay=0.5)
    assert torch.allclose(left, weight * 0.95)


def test_momentum_remembers():
    """Of gradients g and then 0 the second update is that of g again, for only its direction counts."""
    gradient = torch.randn(5, 5)
    once = updated([torch.zeros(5, 5)], [[gradient]])[0]
    twice = updated([torch.zeros(5, 5)], [[gradient], [torch.zeros(5, 5)]])[0]
    assert torch.allclose(twice, 2 * once, atol=1e-4)
    assert once.square().mean().sqrt() == pytest.approx(0.2, rel=0.3)
    assert math.isfinite(float(twice.norm()))
