"""Selected rows against the algorithms as their papers state them."""

import itertools

import pytest
import torch

from corank.linalg import SELECTIONS, by_leverage, by_volume, deim


def basis(m=12, r=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(m, r, generator=g, dtype=torch.float64)).Q


def literal_deim(u):
    chosen = [int(u[:, 0].abs().argmax())]
    for j in range(1, u.shape[1]):
        c = torch.linalg.solve(u[chosen, :j], u[chosen, j])
        residual = u[:, j] - u[:, :j] @ c
        chosen.append(int(residual.abs().argmax()))
    return chosen


@pytest.mark.parametrize("seed", range(4))
def test_deim_is_its_algorithm_and_nested(seed):
    u = basis(seed=seed)
    assert deim(u).tolist() == literal_deim(u)
    assert deim(u[:, :3]).tolist() == deim(u).tolist()[:3]


@pytest.mark.parametrize("name", SELECTIONS)
def test_rows_are_chosen_once_and_span(name):
    u = basis(20, 6)
    rows = SELECTIONS[name](u)
    assert len(set(rows.tolist())) == 6
    if name != "leverage":  # which looks at each row by itself, and promises no span
        assert torch.linalg.cond(u[rows]) < 1e3


def test_leverage_takes_the_longest_rows_and_volume_more_of_it():
    u = basis(8, 3)
    longest = sorted(range(8), key=lambda i: -float(u[i].norm()))[:3]
    assert sorted(by_leverage(u).tolist()) == sorted(longest)
    picks = map(list, itertools.combinations(range(8), 3))
    most = max(float(torch.linalg.det(u[p]).abs()) for p in picks)
    assert float(torch.linalg.det(u[by_volume(u)]).abs()) >= most / 2


def test_a_dependent_basis_is_refused():
    u = basis()
    with pytest.raises(ValueError, match="depends"):
        deim(torch.cat([u[:, :2], torch.zeros(12, 1, dtype=u.dtype)], 1))
    with pytest.raises(ValueError, match="only 5 rows"):
        deim(u.mT)
