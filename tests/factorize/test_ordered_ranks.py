"""Maestro and rank incrementation: what is sampled, penalised, dropped and grown."""

import pytest
import torch
from torch import nn

import corank
from corank.control.ordered import suffix_lasso
from corank.control.ranks import truncate

from ..adapters.small import small_model
from .small import begin, operators, train


def linear(rank=3, size=(10, 12)):
    """A linear model to train, and one of that rank to learn."""
    draw = torch.Generator().manual_seed(0)
    b = torch.linalg.qr(torch.randn(size[0], rank, generator=draw, dtype=torch.float64)).Q
    a = torch.linalg.qr(torch.randn(size[1], rank, generator=draw, dtype=torch.float64)).Q.mT
    values = torch.linspace(3, 1, rank, dtype=torch.float64)
    return nn.Sequential(nn.Linear(size[1], size[0], bias=False)).double(), (b * values) @ a


def test_maestro_finds_the_rank_of_a_linear_map():
    model, target = linear()
    corank.factorize(model, "maestro", group_lasso=2e-3, threshold=1e-2, every=50)
    control = corank.controller(model, total_steps=900)
    optimizer = torch.optim.Adam(control.parameter_groups(1e-2))
    control.attach(optimizer)
    draw = torch.Generator().manual_seed(1)
    for _ in range(900):
        x = torch.randn(64, 12, generator=draw, dtype=torch.float64)
        loss = (model(x) - x @ target.mT).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    op = model[0].operator
    assert op.rank == 3
    assert bool(op.mask.all())
    error = (op.dense() - target).norm() / target.norm()
    assert error < 0.1
    # Ordered by importance: the first rank carries the greatest singular direction.
    sizes = op.b.norm(dim=0) * op.a.norm(dim=1)
    assert sizes.argmax() == 0


def test_the_lasso_is_the_sum_of_suffix_norms():
    model = small_model()
    corank.factorize(model, "maestro", targets=["4"])
    (training,) = corank.controller(model).trainings
    op = operators(model)["4"]
    wanted = sum(op.b[:, k:].norm() + op.a[k:].norm() for k in range(20))
    penalty = suffix_lasso(0.3)(training)
    torch.testing.assert_close(penalty, 0.3 * wanted)
    with torch.no_grad():
        op.b[:, 15:] = 0
    suffix_lasso(1.0)(training).backward()
    assert bool(op.b.grad.isfinite().all())


@pytest.mark.parametrize("sample", ["one", "all"])
def test_each_step_acts_with_prefixes(sample):
    model = small_model()
    corank.factorize(model, "maestro", sample=sample, threshold=0.0)
    _, optimizer = begin(model)
    full = {"0": 16, "2": 20, "4": 20}
    seen = []
    for step in range(6):
        acting = {name: int(op.mask.sum()) for name, op in operators(model).items()}
        for name, op in operators(model).items():
            assert bool(op.mask[: acting[name]].all())
        seen.append(acting)
        if sample == "one":
            assert sum(acting[name] < full[name] for name in full) <= 1
        train(model, optimizer, [step])
    assert len({tuple(acting.values()) for acting in seen}) > 3
    train(model, optimizer, range(6, 30))
    assert all(bool(op.mask.all()) for op in operators(model).values())


def test_dropped_ranks_leave_the_optimiser():
    model = small_model()
    corank.factorize(model, "maestro", targets=["2"], threshold=2.0, every=2)
    _, optimizer = begin(model)
    train(model, optimizer, range(1))
    op = operators(model)["2"]
    train(model, optimizer, range(1, 2))
    assert 1 <= op.rank < 20
    assert optimizer.state[op.b]["exp_avg"].shape == op.b.shape
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert known == {id(p) for p in model.parameters()}


def test_the_rank_grows_by_increments_and_can_be_cut():
    model = small_model()
    corank.factorize(model, "train_rank_increment", rank=8, first=2, increment=3, every=4)
    control, optimizer = begin(model)
    ranks = []
    for step in range(14):
        ranks.append({int(op.mask.sum()) for op in operators(model).values()})
        train(model, optimizer, [step])
    assert ranks == [{2}] * 4 + [{5}] * 4 + [{8}] * 6
    for op in operators(model).values():
        truncate(op, 3)
    x = torch.randn(4, 16, dtype=torch.float64)
    before = model(x)
    corank.adapters.compact(model, optimizer, control)
    assert {op.rank for op in operators(model).values()} == {3}
    torch.testing.assert_close(model(x), before)


def test_ranks_that_do_not_act_yet_do_not_move():
    model = small_model()
    corank.factorize(model, "train_rank_increment", rank=8, first=2, every=100)
    start = {name: op.b[:, 2:].clone() for name, op in operators(model).items()}
    _, optimizer = begin(model)
    train(model, optimizer, range(3))
    for name, op in operators(model).items():
        assert torch.equal(op.b[:, 2:], start[name])
