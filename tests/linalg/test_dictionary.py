"""Sparse codes over orthonormal atoms: each step's optimality, and brute force."""

import itertools

import pytest
import torch

from corank.linalg import dictionary, learned_dictionary, matching_pursuit, orthonormal_dictionary


def matrix(m=10, n=7, seed=0):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def error(a, s, d):
    return float((a - s @ d).square().sum())


FITS = [orthonormal_dictionary, learned_dictionary]


def test_atoms_are_orthonormal_and_codes_sparse():
    s, d = orthonormal_dictionary(matrix(), 5, 2)
    torch.testing.assert_close(d @ d.mT, torch.eye(5, dtype=torch.float64))
    assert ((s != 0).sum(1) == 2).all()


def test_rounds_never_make_it_worse_and_do_make_it_better():
    a = matrix(30, 12)
    errors = [error(a, *orthonormal_dictionary(a, 6, 2, rounds)) for rounds in range(8)]
    assert all(later <= before + 1e-9 for before, later in itertools.pairwise(errors))
    assert errors[-1] < 0.95 * errors[0]


def test_given_the_atoms_no_support_and_values_are_better():
    a = matrix(4, 5)
    s, d = orthonormal_dictionary(a, 4, 2)
    for i in range(len(a)):
        best = min(
            float((a[i] - torch.linalg.lstsq(d[list(c)].mT, a[i]).solution @ d[list(c)]).norm())
            for c in itertools.combinations(range(4), 2)
        )
        assert float((a[i] - s[i] @ d).norm()) == pytest.approx(best)


def test_given_the_codes_no_other_rotation_of_the_atoms_is_better():
    a = matrix(12, 6)
    s, d = orthonormal_dictionary(a, 4, 2, rounds=200)
    g = torch.Generator().manual_seed(1)
    for _ in range(20):
        q = matrix(6, 6, int(torch.randint(99, (1,), generator=g)))
        turn = torch.matrix_exp(1e-2 * (q - q.mT))
        assert error(a, s, d @ turn) >= error(a, s, d) - 1e-9


def test_as_many_nonzeros_as_atoms_is_the_svd():
    a = matrix()
    s, d = orthonormal_dictionary(a, 4, 4)
    tail = torch.linalg.svdvals(a)[4:].square().sum()
    assert error(a, s, d) == pytest.approx(float(tail))


@pytest.mark.parametrize(("atoms", "nonzeros"), [(0, 1), (8, 2), (4, 5), (4, 0)])
@pytest.mark.parametrize("fit", FITS)
def test_impossible_sizes_are_refused(fit, atoms, nonzeros):
    with pytest.raises(ValueError, match=r"rank|nonzeros"):
        fit(matrix(), atoms, nonzeros)


def test_matching_pursuit_is_scikit_learns():
    from sklearn.linear_model import orthogonal_mp

    d = torch.nn.functional.normalize(matrix(9, 7, seed=1), dim=1)
    a = matrix(12, 7)
    for nonzeros in (1, 3, 5):
        expected = orthogonal_mp(d.mT.numpy(), a.mT.numpy(), n_nonzero_coefs=nonzeros)
        found = matching_pursuit(a, d, nonzeros)
        torch.testing.assert_close(found, torch.tensor(expected).mT, rtol=1e-6, atol=1e-8)


def test_rows_are_pursued_alike_however_many_at_once(monkeypatch):
    d = torch.nn.functional.normalize(matrix(9, 7, seed=1), dim=1)
    a = matrix(12, 7)
    together = matching_pursuit(a, d, 5)
    monkeypatch.setattr(dictionary, "_AT_ONCE", 5 * 9 * 5)
    torch.testing.assert_close(matching_pursuit(a, d, 5), together)


def test_pursuit_of_dependent_atoms_stays_finite():
    d = torch.nn.functional.normalize(matrix(4, 7, seed=1), dim=1)
    d, a = torch.cat([d, d]), matrix(12, 7)
    found = matching_pursuit(a, d, 6)
    best = a - a @ torch.linalg.pinv(d) @ d
    torch.testing.assert_close(a - found @ d, best, rtol=1e-5, atol=1e-6)


def test_learning_never_makes_it_worse_and_beats_orthonormal_atoms():
    a = matrix(40, 12)
    errors = [error(a, *learned_dictionary(a, 8, 2, rounds)) for rounds in (0, 1, 4, 12)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < error(a, *orthonormal_dictionary(a, 8, 2, 20))
    s, d = learned_dictionary(a, 8, 2)
    assert ((s != 0).sum(1) <= 2).all()
    torch.testing.assert_close(d.norm(dim=1), torch.ones(8, dtype=torch.float64))
