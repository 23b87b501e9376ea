"""ROCKET's codes: which stay, and that the atoms are the best for them."""

import pytest
import torch

from corank.linalg import exact_svd, pruned_dictionary


def parts(m=20, n=9, k=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(m, n, generator=g, dtype=torch.float64)
    lengths = torch.rand(k, generator=g, dtype=torch.float64) + 0.2
    return a, exact_svd(a).vh[:k], lengths


def test_as_many_stay_in_a_row_and_some_wherever_they_weigh_most():
    a, d, lengths = parts()
    s, _ = pruned_dictionary(a, d, lengths, 2, anywhere=7)
    full = a @ d.mT
    kept = s != 0
    torch.testing.assert_close(s[kept], full[kept])
    assert int(kept.sum()) == 20 * 2 + 7
    even = pruned_dictionary(a, d, lengths, 2)[0] != 0
    assert (even.sum(1) == 2).all()
    assert kept[even].all()
    weighs = full.abs() * lengths
    assert weighs[kept & ~even].min() > weighs[~kept].max()


def test_the_atoms_solve_the_ridge_system_of_their_codes():
    a, d, lengths = parts()
    s, atoms = pruned_dictionary(a, d, lengths, 2)
    shift = 1e-3 * (s.mT @ s).trace() / 6
    slope = s.mT @ (s @ atoms - a) + shift * atoms
    assert slope.abs().max() < 1e-9
    best = torch.linalg.lstsq(s, a).solution
    assert (a - s @ best).norm() <= (a - s @ atoms).norm() < (a - s @ d).norm()


def test_all_codes_are_the_svd_whatever_the_ridge():
    a, d, lengths = parts()
    s, atoms = pruned_dictionary(a, d, lengths, 6)
    torch.testing.assert_close(s @ atoms, a @ d.mT @ d)


def test_training_never_makes_it_worse_and_keeps_the_zeros():
    a, d, lengths = parts()
    (s, atoms), (trained, moved) = (
        pruned_dictionary(a, d, lengths, 2, 5, steps=n) for n in (0, 60)
    )
    assert (a - trained @ moved).norm() < (a - s @ atoms).norm()
    assert torch.equal(trained != 0, s != 0)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_training_does_not_depend_on_the_units(scale):
    a, d, lengths = parts()
    one, other = (pruned_dictionary(f * a, d, lengths, 2, steps=20) for f in (1, scale))
    torch.testing.assert_close(other[0] @ other[1], scale * (one[0] @ one[1]))
