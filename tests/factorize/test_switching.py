"""Cuttlefish: when it switches, at which ranks, and to what."""

import math

import pytest
import torch
from torch import nn

import corank
from corank.control.switching import _flat
from corank.operators import Dense, LowRank

from ..adapters.small import small_model
from .small import begin, operators, train


def spectrum(values, size):
    """A weight of these singular values."""
    draw = torch.Generator().manual_seed(0)
    u, v = (
        torch.linalg.qr(torch.randn(n, len(values), generator=draw, dtype=torch.float64)).Q
        for n in size
    )
    return u @ torch.tensor(values, dtype=torch.float64).diag() @ v.mT


def test_it_switches_at_the_step_where_the_ranks_settle_and_at_the_scaled_rank():
    model = nn.Sequential(nn.Linear(12, 10, bias=False)).double()
    model[0].weight.data.copy_(spectrum([1.0] * 10, (10, 12)))  # stable rank 10 of 10
    corank.factorize(model, "cuttlefish", every=2, window=3, slope=0.05, decay=0.0)
    control = corank.controller(model)
    optimizer = torch.optim.SGD(control.parameter_groups(0.0))
    control.attach(optimizer)
    # Falling for 5 measurements, then still: 1 + 9 / 2^2 and so on.
    path = [[1.0] + [tail] * 9 for tail in (0.9, 0.8, 0.7, 0.6, 0.5)] + [[1.0] + [0.5] * 9] * 30
    switched = None
    for number in range(60):
        if isinstance(model[0].operator, Dense):
            model[0].operator.weight.data.copy_(spectrum(path[number // 2], (10, 12)))
        model(torch.ones(1, 12, dtype=torch.float64)).sum().backward()
        optimizer.step()
        if switched is None and isinstance(model[0].operator, LowRank):
            switched = number + 1
    history = [1 + 9 * values[1] ** 2 for values in path]
    smooth = [history[0]]
    for value in history[1:]:
        smooth.append((smooth[-1] + value) / 2)

    def mean_slope(count):  # of the last 11, central differences, one-sided at the ends
        s = smooth[:count]
        inner = [(s[i + 1] - s[i - 1]) / 2 for i in range(1, count - 1)]
        slopes = [s[1] - s[0], *inner, s[-1] - s[-2]]
        return sum(map(abs, slopes[-11:])) / len(slopes[-11:])

    wanted = next(n for n in range(3, 31) if mean_slope(n) <= 2 * 0.05)  # the only weight left
    assert switched == 2 * wanted
    assert 10 < wanted < 25
    assert control.trainings[0].memory["switched"] == switched
    rank = math.ceil(1 + 9 / 4)
    assert model[0].operator.rank == rank
    error = model[0].operator.dense() - spectrum(path[-1], (10, 12))
    assert float(error.detach().norm()) == pytest.approx(0.5 * (10 - rank) ** 0.5)  # the best one
    b, a = model[0].operator.b, model[0].operator.a
    torch.testing.assert_close((b.mT @ b).diagonal(), (a @ a.mT).diagonal())
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(b), id(a)}


def test_a_history_that_is_too_short_or_moves_has_not_settled():
    assert not _flat([3.0] * 14, 15, 0.1)
    assert _flat([3.0] * 15, 15, 0.1)
    assert not _flat([float(n) for n in range(30)], 15, 0.1)
    assert _flat([0.05 * n for n in range(30)], 15, 0.1)


def test_no_weight_switches_before_all_have_settled():
    model = small_model()
    corank.factorize(model, "cuttlefish", every=1, window=2, slope=0.0)
    control, optimizer = begin(model)
    train(model, optimizer, range(6))
    assert "switched" not in control.trainings[0].memory
    assert all(isinstance(op, Dense) for op in operators(model).values())


def test_a_weight_that_factors_would_not_shrink_stays_dense():
    model = small_model()
    with torch.no_grad():
        model[2].weight.copy_(spectrum([1.0] * 20, (20, 36)))
    corank.factorize(model, "cuttlefish", every=1, window=2, slope=100.0)
    _, optimizer = begin(model, lr=1e-6)
    train(model, optimizer, range(4))
    kept = operators(model)["2"]
    assert isinstance(kept, Dense)  # its scaled rank is still full
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {
        id(p) for p in model.parameters()
    }


@pytest.mark.parametrize("wrong", [{"every": 0}, {"window": 0}, {"slope": -1.0}, {"decay": -1.0}])
def test_bad_parameters_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        corank.factorize(small_model(), "cuttlefish", **wrong)
