from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corank.linalg import rank_by_energy, rank_by_entropy, rank_by_tolerance, stable_rank

SPECTRA = st.lists(st.floats(0.0, 1e6), min_size=1, max_size=12).map(
    lambda values: sorted(values, reverse=True)
)


@given(values=SPECTRA, keep=st.floats(0.01, 1.0))
def test_energy_is_the_smallest_rank_that_holds_the_share(values: list[float], keep: float) -> None:
    rank = rank_by_energy(torch.tensor(values, dtype=torch.float64), keep)
    total = math.fsum(v * v for v in values)
    slack = 1e-12 * total
    assert 1 <= rank <= len(values)
    assert math.fsum(v * v for v in values[rank:]) <= (1 - keep) * total + slack
    if rank > 1:
        assert math.fsum(v * v for v in values[rank - 1 :]) >= (1 - keep) * total - slack


def test_tolerance_counts_relative_to_the_largest() -> None:
    s = torch.tensor([10.0, 5.0, 1.0, 0.1])
    assert [rank_by_tolerance(s, t) for t in (0.0, 0.05, 0.1, 0.6)] == [4, 3, 2, 1]
    assert rank_by_tolerance(torch.zeros(3), 0.0) == 0


@given(values=SPECTRA)
def test_effective_and_stable_rank_lie_between_one_and_k(values: list[float]) -> None:
    s = torch.tensor(values, dtype=torch.float64)
    for rank in (rank_by_entropy(s), stable_rank(s)):
        if values[0] == 0:
            assert rank == 0
        else:
            assert 1 - 1e-9 <= rank <= len(values) + 1e-9


def test_known_values() -> None:
    assert rank_by_entropy(torch.full((7,), 1e30)) == pytest.approx(7)
    assert rank_by_entropy(torch.tensor([3.0, 1.0])) == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    )
    assert stable_rank(torch.tensor([2.0, 1.0, 1.0])) == pytest.approx(1.5)
    assert rank_by_energy(torch.tensor([3.0, 4.0]).flip(0), 0.64) == 1
    assert rank_by_energy(torch.tensor([4.0, 3.0]), 0.65) == 2


@pytest.mark.parametrize(
    "s",
    [
        torch.ones(2, 2),
        torch.ones(0),
        torch.tensor([1.0, 2.0]),
        torch.tensor([1.0, -1.0]),
        torch.tensor([float("nan")]),
    ],
)
def test_what_is_no_spectrum_is_refused(s: torch.Tensor) -> None:
    for measure in (stable_rank, rank_by_entropy):
        with pytest.raises(ValueError, match="s must"):
            measure(s)


def test_shares_outside_their_range_are_refused() -> None:
    for keep in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="keep"):
            rank_by_energy(torch.ones(2), keep)
    for tolerance in (-0.1, 1.0):
        with pytest.raises(ValueError, match="tolerance"):
            rank_by_tolerance(torch.ones(2), tolerance)
