"""Adapters whose ranks and entries come and go: what their papers say happens when."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

import corank
from corank.errors import SiteError
from corank.operators import Observed

from .small import batches, leaves, loss, operators, small_model
from .training import begin, delta, products, steps

X = batches(1)[0]


def blocks(count=3, width=8):
    """Blocks with query, key, value and a wider projection, and a head."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            for name in ("q_proj", "k_proj", "v_proj"):
                setattr(self, name, nn.Linear(width, width))
            self.up_proj = nn.Linear(width, 2 * width)
            self.down_proj = nn.Linear(2 * width, width)

        def forward(self, x):
            x = x + self.q_proj(x) + self.k_proj(x) * self.v_proj(x).tanh()
            return x + self.down_proj(self.up_proj(x).tanh())

    torch.manual_seed(0)
    stack = nn.Sequential(*(Block() for _ in range(count)))
    return nn.Sequential(OrderedDict(blocks=stack)).double()


# AdaLoRA


def test_adalora_starts_as_published():
    _, control, _ = begin("adalora")
    for op in products(control).values():
        assert op.rank == 12
        assert not op.gate.any()
        assert abs(op.a.detach().std() - 0.02) < 0.005
        assert abs(op.b.detach().std() - 0.02) < 0.005


def test_adaloras_budget_is_met_and_compacts_to_it():
    model, control, optimizer = begin("adalora", total=20, target_r=2, init_r=5, tfinal=4)
    alive = []
    steps(model, optimizer, range(20), lambda _: alive.append(
        sum(int(op.alive.sum()) for op in products(control).values())
    ))  # fmt: skip
    assert alive[-1] == 6
    assert alive[15:] == [6] * 5
    before = model(X)
    assert corank.adapters.compact(model, optimizer, control) == 9
    torch.testing.assert_close(model(X), before)


def test_adalora_needs_to_know_how_long():
    with pytest.raises(ValueError, match="total_steps"):
        begin("adalora", total=None)
    with pytest.raises(ValueError, match="leave no step"):
        begin("adalora", total=10, tinit=6, tfinal=4)
    with pytest.raises(ValueError, match="target_r=9 must be from 1 to init_r=4"):
        begin("adalora", target_r=9, init_r=4)


# SoRA


def test_soras_gates_reach_zero_and_the_ranks_go():
    model, control, optimizer = begin("sora", threshold=0.1, lr=1e-3, total=12)
    steps(model, optimizer, range(8))
    dead = sum(int((op.gate == 0).sum()) for op in products(control).values())
    assert 0 < dead < 24
    before = model(X)
    assert corank.adapters.compact(model, optimizer, control) == dead
    torch.testing.assert_close(model(X), before)


def test_soras_schedule_goes_through_its_thresholds():
    model, control, optimizer = begin("sora", threshold=(0.0, 0.25), l1=0.0, lr=0.0, total=8)
    gates = [op.gate.detach().clone() for op in products(control).values()]

    def check(number):
        moved = 0.25 * max(0, number - 2)  # steps 4 to 8 are of the second half
        for op, start in zip(products(control).values(), gates, strict=True):
            torch.testing.assert_close(op.gate.abs(), (start.abs() - moved).clamp_min(0))

    steps(model, optimizer, range(8), check)


# DyLoRA


def test_dyloras_ranks_vary_together_and_end_in_full():
    model, control, optimizer = begin("dylora", total=60, rank=4, lr=1e-4)
    seen = set()

    def look(_):
        alive = {int(op.alive.sum()) for op in products(control).values()}
        assert len(alive) == 1
        seen.update(alive)

    steps(model, optimizer, range(60), look)
    assert seen == {1, 2, 3, 4}
    assert all(op.alive.all() for op in products(control).values())


@pytest.mark.parametrize("frozen", [True, False])
def test_dylora_moves_its_last_row_or_all_up_to_it(frozen):
    model, control, optimizer = begin(
        "dylora", total=20, rank=5, frozen=frozen, optimizer=torch.optim.SGD, lr=1e-3
    )
    for number in range(10):
        before = [(op.a.clone(), op.b.clone()) for op in products(control).values()]
        ranks = [int(op.alive.sum()) for op in products(control).values()]
        steps(model, optimizer, [number])
        for op, (a, b), rank in zip(products(control).values(), before, ranks, strict=True):
            columns = (op.b != b).any(0).nonzero().flatten().tolist()
            rows = (op.a != a).any(1).nonzero().flatten().tolist()
            assert columns == ([rank - 1] if frozen else list(range(rank)))
            assert set(rows) <= set(columns)


def test_dylora_serves_every_rank_scaled_by_alpha_over_it():
    model, control, optimizer = begin("dylora", rank=4, alpha=8.0, frozen=False)
    steps(model, optimizer, range(12))
    low = {path: leaves(op) for path, op in operators(model).items()}
    for rank in (3, 1, 4, 2):
        corank.adapters.set_ranks(model, rank)
        for path, p in low.items():
            expected = 8.0 / rank * p["b"][:, :rank] @ p["a"][:rank]
            torch.testing.assert_close(delta(model, path), expected.detach())
    before = model(X)
    corank.adapters.compact(model, optimizer, control)
    assert {op.rank for op in products(control).values()} == {2}
    torch.testing.assert_close(model(X), before)


# Shears


def test_shears_prunes_as_wanda():
    model, _, _ = begin("shears", rank=4, space=(4, 2), sparsity=0.5)
    inputs = torch.cat(batches())
    weight = small_model()[0].weight
    score = weight.abs() * inputs.square().mean(0).sqrt()
    kept = score > score.sort(1).values[:, 7:8]
    with torch.no_grad():
        torch.testing.assert_close(operators(model)["0"].dense(), weight * kept)
        assert ((operators(model)["0"].dense() == 0).sum(1) == 8).all()


def test_shears_draws_a_rank_for_each_group():
    model = blocks()
    corank.adapt(model, "shears", rank=4, space=(4, 2, 1), sparsity=0.0)
    control = corank.controller(model)
    control.attach(torch.optim.SGD(control.parameter_groups(0.0)))
    seen, apart = set(), False
    for _ in range(20):
        control.step()
        ranks = control.trainings[0].memory["ranks"]
        assert ranks["blocks.0.q_proj"] == ranks["blocks.0.k_proj"] == ranks["blocks.0.v_proj"]
        apart |= ranks["blocks.0.q_proj"] != ranks["blocks.0.up_proj"] != ranks["blocks.1.q_proj"]
        acting = {n.split("/")[0]: int(op.alive.sum()) for n, op in products(control).items()}
        assert acting == ranks
        seen |= set(ranks.values())
    assert apart
    assert seen == {1, 2, 4}


def test_shears_scale_is_the_same_at_every_rank():
    model, control, optimizer = begin("shears", rank=4, alpha=8.0, space=(4, 2), sparsity=0.0)
    steps(model, optimizer, range(12))
    assert all(op.alive.all() for op in products(control).values())
    corank.adapters.set_ranks(model, {"0": 2})
    for path, rank in (("0", 2), ("2", 4)):
        p = leaves(operators(model)[path])
        expected = 8.0 / 4 * p["b"][:, :rank] @ p["a"][:rank]
        torch.testing.assert_close(delta(model, path), expected.detach())


def test_a_search_finds_the_best_ranks_by_climbing():
    model, _, _ = begin("shears", rank=4, space=(4, 3, 2, 1), sparsity=0.0)
    best, tried = {"0": 4, "2": 1, "4": 2}, []

    def evaluate():
        at = {p: int(op.operators[1].operator.alive.sum()) for p, op in operators(model).items()}
        tried.append(at)
        return sum((at[p] - best[p]) ** 2 for p in best)

    found = corank.adapters.search_ranks(model, evaluate, (4, 3, 2, 1))
    assert found == best
    assert tried[0] == {"0": 3, "2": 3, "4": 3}  # the heuristic: the middle of the list
    assert evaluate() == 0
    tried.clear()
    corank.adapters.search_ranks(model, evaluate, (4, 3, 2, 1), evaluations=5)
    assert len(tried) == 5


def test_ranks_are_set_only_where_they_are_elastic():
    model, _, _ = begin("lora")
    with pytest.raises(ValueError, match="no elastic rank at 0"):
        corank.adapters.set_ranks(model, 2)
    model, _, _ = begin("dylora")
    with pytest.raises(ValueError, match="is not at '7'"):
        corank.adapters.set_ranks(model, {"7": 2})
    with pytest.raises(ValueError, match="must hold ranks from 1 to rank=4"):
        begin("shears", rank=4, space=(8,))


# PRILoRA


def test_priloras_ranks_grow_linearly_over_the_blocks():
    model = blocks(5)
    report = corank.adapt(model, "prilora", first=2, last=6, depth=5)
    assert {(row.layer, row.rank) for row in report.sites} == {(i, i + 2) for i in range(5)}
    with pytest.raises(SiteError, match="block 3 is beyond depth=3"):
        corank.adapt(blocks(5), "prilora", first=2, last=6, depth=3)


def test_prilora_prunes_by_weight_and_input():
    model, _, optimizer = begin(
        "prilora", sparsity=0.75, interval=2, beta=0.5, lr=0.0, optimizer=torch.optim.SGD
    )
    starts = {p: leaves(op)["a"].detach().clone() for p, op in operators(model).items()}
    steps(model, optimizer, range(2))
    data = batches(6)
    squares = 0.25 * data[0].square().mean(0) + 0.5 * data[1].square().mean(0)
    (observed,) = [m for m in operators(model)["0"].modules() if isinstance(m, Observed)]
    torch.testing.assert_close(observed.square_mean, squares)
    score = starts["0"].abs() * squares.sqrt()
    kept = score > score.sort(1).values[:, 11:12]
    torch.testing.assert_close(leaves(operators(model)["0"])["a"], starts["0"] * kept)
    seen = observed.square_mean.clone()
    model.eval()
    model(X)
    assert torch.equal(observed.square_mean, seen)


def test_prilora_refuses_what_has_no_inputs_to_follow():
    model = nn.Sequential(nn.Embedding(9, 16), nn.Linear(16, 16))
    with pytest.raises(SiteError, match="inputs of linear weights only"):
        corank.adapt(model, "prilora", targets="all")


# RoseLoRA


def test_roseloras_rows_and_columns_become_sparse_on_schedule():
    model, control, optimizer = begin("roselora", total=30, rank=4, keep=0.25, first=2, last=8)

    def check(number):
        left = max(0.0, min(1.0, 1 - (number - 2) / 6)) ** 3
        share = 0.25 + 0.75 * left
        for op in products(control).values():
            for leaf, axis in ((op.a, 1), (op.b, 0)):
                size = leaf.shape[axis]
                allowed = size - int(size * (1 - share))
                assert (leaf.detach() != 0).sum(axis).max() <= allowed
                if number < 2 and axis == 1:
                    assert (leaf != 0).all()

    steps(model, optimizer, range(12), check)


def test_roseloras_importance_is_the_smoothed_sensitivity():
    model, control, optimizer = begin("roselora", beta=0.8)
    name, op = next(iter(products(control).items()))
    expected = None
    for number in range(3):
        optimizer.zero_grad()
        loss(model, batches(6)[number]).backward()
        now = (op.a * op.a.grad).abs().detach()
        expected = now if expected is None else 0.8 * expected + 0.2 * now
        optimizer.step()
    torch.testing.assert_close(control.trainings[0].memory[f"importance:{name}.a"], expected)


# AFLoRA


def test_aflora_freezes_everything_in_time_and_for_good():
    model, control, optimizer = begin("aflora", total=40, interval=2, warmup=0.1, final=0.5)
    square = leaves(operators(model)["4"])
    assert not square["a"].requires_grad
    assert not square["b"].requires_grad
    assert torch.equal(square["gate"], torch.full((4,), 0.1, dtype=torch.float64))
    counts = []
    steps(model, optimizer, range(24), lambda _: counts.append(len(control.trainings[0].leaves())))
    assert counts[0] == 3 * 2 + 2 * 2
    assert counts == sorted(counts, reverse=True)
    assert counts[:4] == [10] * 4
    assert counts[19:] == [6] * 5
    kept = {n: p.detach().clone() for n, p in model.named_parameters() if n.endswith((".a", ".b"))}
    corank.adapters.activate(model, "default")  # lets all leaves train again
    steps(model, optimizer, range(24, 30))
    assert all(torch.equal(model.get_parameter(n), p) for n, p in kept.items())


def test_aflora_freezes_what_has_the_lowest_mean_score():
    model, control, optimizer = begin("aflora", total=20, interval=4, warmup=0.0, final=0.4)
    raw = {}
    factors = {n: p for n, p in control.trainings[0].leaves().items() if n[-2:] in (".a", ".b")}
    for number in range(4):
        optimizer.zero_grad()
        loss(model, batches(6)[number]).backward()
        for name, leaf in factors.items():
            raw[name] = raw.get(name, 0) + leaf.grad.abs() / 4
        optimizer.step()
    scores = {n: (0.15 * s) * (0.05 * (s - 0.15 * s).abs()) for n, s in raw.items()}
    share = 1 - (1 - 4 / 12) ** 3
    entries = torch.cat([s.flatten() for s in scores.values()])
    threshold = entries.sort().values[int(len(entries) * share) - 1]
    expected = {n for n, s in scores.items() if s.mean() <= threshold}
    assert 0 < len(expected) < 4
    assert {n for n, leaf in factors.items() if not leaf.requires_grad} == expected
