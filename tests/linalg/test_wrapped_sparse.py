"""ARMOR's factors: the loss never rises, and groups are renewed to the best of their masks."""

import itertools

import pytest
import torch

from corank.linalg import n_of_m, wrapped_sparse
from corank.linalg.wrapped_sparse import best_of_masks, renew_groups, steepness


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WEIGHTS = torch.logspace(-1, 1, 16).double()


def loss(a, found):
    made = torch.block_diag(*found.left) @ found.core @ torch.block_diag(*found.right)
    return float(((a - made).square() * WEIGHTS).sum())


def fit(a, steps, block=8, seed=0):
    return wrapped_sparse(a, WEIGHTS, block, steps, generator=torch.Generator().manual_seed(seed))


def test_it_starts_at_the_best_mask_between_identities():
    a = normal(24, 16)
    found = fit(a, 0)
    kept = n_of_m(a.square() * WEIGHTS, 2, 4)
    assert torch.equal(found.core, a * kept)
    assert torch.equal(torch.block_diag(*found.left), torch.eye(24).double())
    assert loss(a, found) == pytest.approx(float((a.square() * WEIGHTS * ~kept).sum()))


def test_the_loss_never_rises_with_more_steps_and_falls_far():
    a = normal(24, 16)
    losses = [loss(a, fit(a, steps)) for steps in (0, 1, 5, 20, 100)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.5 * losses[0]


def test_a_matrix_of_the_form_is_found_again_better_than_by_pruning():
    blocks = torch.eye(8) + 0.2 * normal(2, 8, 8)
    core = normal(16, 16, seed=1)
    a = torch.block_diag(*blocks) @ (core * n_of_m(core.abs(), 2, 4))
    assert loss(a, fit(a, 300)) < 0.1 * loss(a, fit(a, 0))


def test_the_core_is_two_of_four_throughout():
    for steps in (0, 3, 40):
        core = fit(normal(24, 16), steps).core
        assert ((core != 0).unflatten(1, (-1, 4)).sum(2) <= 2).all()


def test_the_renewed_group_is_the_best_of_all_masks_and_numbers():
    rest, before, after = normal(5, 8, 8), normal(5, 8, seed=1), normal(5, 4, 8, seed=2)
    values, kept = best_of_masks(rest, before, after)
    assert (kept.sum(1) == 2).all()
    for i in range(5):
        tried = []
        for mask in itertools.combinations(range(4), 2):
            columns = torch.stack([torch.outer(before[i], after[i, j]).flatten() for j in mask], 1)
            v = torch.linalg.lstsq(columns, -rest[i].flatten()).solution
            tried.append((float((rest[i].flatten() + columns @ v).norm()), mask, v))
        least, mask, v = min(tried, key=lambda entry: entry[0])
        assert kept[i].nonzero()[:, 0].tolist() == list(mask)
        torch.testing.assert_close(values[i][kept[i]], v)
        made = rest[i] + torch.outer(before[i], values[i] @ after[i])
        assert float(made.norm()) == pytest.approx(least)


def test_renewing_takes_one_group_in_every_block_and_never_raises_the_loss():
    grid, seen = normal(3, 2, 8, 8), normal(1, 2, 1, 8, seed=1).abs()
    left, right = normal(3, 8, 8, seed=2), normal(2, 8, 8, seed=3)
    core = normal(3, 2, 8, 8, seed=4)
    mask = n_of_m(core.view(-1, 8).abs(), 2, 4).view_as(core)
    core = core * mask
    generator = torch.Generator().manual_seed(0)

    def lost():
        return ((left[:, None] @ core @ right[None] - grid) * seen).square().sum((2, 3))

    for _ in range(5):
        before, then = core.clone(), lost()
        renew_groups(grid, seen, left, core, right, mask, generator)
        assert (lost() < then).all()
        changed = (core != before).unflatten(-1, (-1, 4)).any(-1)
        assert (changed.sum((2, 3)) == 1).all()
        assert torch.equal(core != 0, mask)


def test_groups_are_drawn_by_the_gradient_of_the_loss():
    core, left, right = normal(3, 2, 8, 8), normal(3, 8, 8, seed=1), normal(1, 2, 8, 8, seed=2)
    core.requires_grad_(True)
    rest = left[:, None] @ core @ right - normal(3, 2, 8, 8, seed=3)
    (slope,) = torch.autograd.grad(rest.square().sum() / 2, core)
    wanted = slope.abs().view(3, 2, 8, 2, 4).sum(-1)
    torch.testing.assert_close(steepness(rest.detach(), left, right), wanted)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_weights_have_no_unit(scale):
    a = normal(24, 16)
    other = wrapped_sparse(a, scale * WEIGHTS, 8, 20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(other.core, fit(a, 20).core)


def test_shapes_that_do_not_fit_are_refused():
    for block in (6, 12, 0):
        with pytest.raises(ValueError, match="do not fit"):
            wrapped_sparse(normal(24, 16), WEIGHTS, block, 1)
