"""Blocks with shared factors: recovery of what has the structure, and the SVD as a special case."""

import pytest
import torch

from corank.linalg import shared_blocks


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fitted(a, rank, steps=300):
    u, s, v = shared_blocks(a, rank, steps, torch.Generator().manual_seed(0))
    return torch.einsum("ipr,ijr,jqr->ijpq", u, s, v)


def test_what_has_the_structure_is_found_again():
    a = torch.einsum(
        "ipr,ijr,jqr->ijpq", rand(3, 8, 2), rand(3, 4, 2, seed=1), rand(4, 6, 2, seed=2)
    )
    assert (fitted(a, 2) - a).norm() < 1e-3 * a.norm()


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_one_block_is_the_svd(rank):
    w = rand(12, 9)
    best = torch.linalg.svdvals(w)[rank:].norm()
    assert float((fitted(w[None, None], rank) - w).norm()) <= 1.01 * float(best)


def test_it_is_at_least_as_near_as_one_low_rank_matrix():
    w = rand(16, 16)
    a = w.unflatten(1, (4, 4)).unflatten(0, (4, 4)).transpose(1, 2)
    low = torch.linalg.svdvals(w)[4:].norm()
    assert float((fitted(a, 4) - a).norm()) < float(low)


def test_more_steps_are_not_worse():
    a = rand(2, 2, 6, 6)
    errors = [float((fitted(a, 3, steps) - a).norm()) for steps in (1, 30, 300)]
    assert errors[0] > errors[1] > errors[2] * 0.999


def test_zero_is_zero_and_bad_input_is_refused():
    assert not fitted(torch.zeros(2, 2, 3, 3, dtype=torch.float64), 1).isnan().any()
    with pytest.raises(ValueError, match="grid of blocks"):
        shared_blocks(rand(4, 4), 1)
    with pytest.raises(ValueError, match="rank at least 1"):
        shared_blocks(rand(2, 2, 3, 3), 0)
