"""Sparsification: exact counts, no bias, the best probabilities, and the spectrum's bound."""

import pytest
import torch

from corank.linalg import sparsify_spectrum
from corank.linalg.sparsification import drawn, inclusion


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw(seed):
    return torch.Generator().manual_seed(seed)


def largest(a, count):
    kept = a.flatten().abs().topk(count).indices
    return torch.zeros_like(a).flatten().scatter(0, kept, a.flatten()[kept]).view_as(a)


def test_probabilities_are_the_best_with_their_sum():
    sizes = normal(40).abs() ** 2
    for count in (1, 7, 20, 39):
        p = inclusion(sizes, count)
        assert float(p.sum()) == pytest.approx(count)
        drawn_ones = p < 1
        ratio = sizes[drawn_ones] / p[drawn_ones]  # equal slopes of sum size^2 / p
        assert ratio.max() - ratio.min() < 1e-9
        assert (sizes[~drawn_ones] >= ratio.max() - 1e-9).all()
    assert torch.equal(inclusion(sizes, 40), torch.ones(40).double())


def test_as_many_are_drawn_as_asked_and_without_bias():
    values = normal(30)
    made = torch.stack([drawn(values, 9, draw(i)) for i in range(4000)])
    assert ((made != 0).sum(1) == 9).all()
    spread = (values.square() * (1 / inclusion(values.abs(), 9) - 1) / 4000).sqrt()
    assert ((made.mean(0) - values).abs() <= 5 * spread + 1e-9).all()
    assert torch.equal(drawn(values, 0, draw(0)), torch.zeros(30).double())


@pytest.mark.parametrize("count", [1, 40, 200, 383, 384])
def test_it_is_never_further_from_the_spectrum_than_pruning_by_size(count):
    a = normal(24, 16)
    made = sparsify_spectrum(a, count, draw(0))
    assert int((made != 0).sum()) == count
    error = torch.linalg.matrix_norm(a - made, 2)
    assert error <= torch.linalg.matrix_norm(a - largest(a, count), 2) * (1 + 1e-6)
    moved = (torch.linalg.svdvals(a) - torch.linalg.svdvals(made)).abs().max()
    assert moved <= error + 1e-9
    if count == 384:
        torch.testing.assert_close(made, a)


def test_where_small_numbers_add_up_some_of_them_stand_for_the_rest():
    a = 0.2 + 3 * normal(64, 64) * (normal(64, 64, seed=1) > 1.5)
    made, pruned = sparsify_spectrum(a, 2048, draw(0)), largest(a, 2048)
    wanted, found, before = (torch.linalg.svdvals(m)[0] for m in (a, made, pruned))
    assert torch.linalg.matrix_norm(a - made, 2) < 0.9 * torch.linalg.matrix_norm(a - pruned, 2)
    assert abs(found - wanted) < abs(before - wanted)


def test_zeros_are_left_out_and_impossible_counts_refused():
    a = torch.zeros(4, 4).double()
    a[1, 2] = 3.0
    assert torch.equal(sparsify_spectrum(a, 5, draw(0)), a)
    for count in (0, 17):
        with pytest.raises(ValueError, match="outside 1 to 16"):
            sparsify_spectrum(a, count)
