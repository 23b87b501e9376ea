"""Allocators against brute force, and against the rule each is named after."""

import itertools
import math

import pytest
import torch

from corank.allocation import ALLOCATORS, Candidate, cost, find_allocator, greedy, knapsack
from corank.models import Site
from corank.operators import Dense
from corank.rewrites import Menu, Unit, menu_of_ranks


def candidate(i, out=8, into=6, decay=0.7, size=1.0, role="q", weight=1.0):
    spectrum = size * decay ** torch.arange(min(out, into), dtype=torch.float64)
    ranks = [r for r in range(1, min(out, into) + 1) if r * (out + into) < out * into]
    costs = [4 * r * (out + into) for r in ranks]
    site = Site(f"s{i}", role, i, (out, into), False, "linear", stats={"tokens": 100.0})
    unit = Unit([site], [Dense(torch.zeros(out, into))])
    return Candidate(
        unit, menu_of_ranks([*ranks, None], [*costs, 4 * out * into], lambda: spectrum), weight
    )


@pytest.fixture
def candidates():
    return [
        candidate(0, 12, 10, 0.5),
        candidate(1, 12, 10, 0.9, 2.0),
        candidate(2, 16, 8, 0.7, 0.3, role="up"),
        candidate(3, 8, 8, 0.95, 1.5, role="up"),
    ]


def loss(candidates, picks):
    return sum(c.error[p] for c, p in zip(candidates, picks, strict=True))


@pytest.mark.parametrize("name", list(ALLOCATORS))
@pytest.mark.parametrize("keep", [0.3, 0.45, 0.6, 0.8, 1.0])
def test_the_budget_is_met_from_below(candidates, name, keep):
    budget = int(keep * sum(c.bytes for c in candidates))
    picks = find_allocator(name)(candidates, budget)
    assert cost(candidates, picks) <= budget
    assert len(picks) == len(candidates)


def test_rocket_gives_up_no_unit_for_the_others(candidates):
    budget = int(0.45 * sum(c.bytes for c in candidates))
    plain, bounded = (find_allocator(name)(candidates, budget) for name in ("knapsack", "rocket"))
    at_share = [c.error[c.menu.largest_within(0.45 * c.bytes)] for c in candidates]
    bound = sum(at_share) / len(candidates)
    worst = [max(c.error[p] for c, p in zip(candidates, picks, strict=True))
             for picks in (plain, bounded)]  # fmt: skip
    assert worst[1] < worst[0]
    assert worst[1] <= 2 * bound
    every = itertools.product(*(
        [i for i, e in enumerate(c.error) if e <= worst[1] + 1e-12] for c in candidates
    ))  # fmt: skip
    fits = [picks for picks in every if cost(candidates, picks) <= budget]
    assert loss(candidates, bounded) == pytest.approx(min(loss(candidates, p) for p in fits))


@pytest.mark.parametrize("name", list(ALLOCATORS))
def test_a_budget_below_the_smallest_choices_is_refused_with_the_smallest_size(candidates, name):
    least = sum(c.menu.costs[0] for c in candidates)
    with pytest.raises(ValueError, match=str(least)):
        find_allocator(name)(candidates, least - 1)


@pytest.mark.parametrize("name", ["energy", "greedy", "knapsack", "sensitivity", "heavy_tail"])
def test_everything_stays_dense_when_everything_fits(candidates, name):
    picks = find_allocator(name)(candidates, sum(c.bytes for c in candidates))
    assert loss(candidates, picks) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("keep", [0.35, 0.5, 0.7, 0.9])
def test_knapsack_is_the_brute_force_optimum_and_greedy_is_near(candidates, keep):
    budget = int(keep * sum(c.bytes for c in candidates))
    every = itertools.product(*(range(len(c.menu.costs)) for c in candidates))
    best = min(loss(candidates, p) for p in every if cost(candidates, list(p)) <= budget)
    assert loss(candidates, knapsack(candidates, budget)) == pytest.approx(best)
    assert loss(candidates, knapsack(candidates, budget)) <= loss(
        candidates, greedy(candidates, budget)
    )
    uniform = find_allocator("uniform")(candidates, budget)
    assert loss(candidates, greedy(candidates, budget)) <= loss(candidates, uniform)


def test_greedy_is_optimal_at_every_corner_of_the_hull():
    pair = [candidate(0, 40, 40, 0.6), candidate(1, 40, 40, 0.8, 3.0)]
    for units in range(2, 16):
        budget = 4 * units * 80
        best = min(
            loss(pair, [i, j])
            for i, j in itertools.product(range(16), range(16))
            if cost(pair, [i, j]) <= budget
        )
        assert loss(pair, greedy(pair, budget)) == pytest.approx(best)


def test_greedy_floor_keeps_every_unit_above_its_share():
    pair = [candidate(0, 40, 40, 0.9, 1e-6), candidate(1, 40, 40, 0.9, 1e6)]
    budget = 4 * 1600
    low = greedy(pair, budget)
    floored = greedy(pair, budget, floor=0.5)
    assert pair[0].menu.costs[low[0]] < 0.5 * budget / 2 <= pair[0].menu.costs[floored[0]] + 4 * 80


def test_uniform_gives_every_unit_the_same_share(candidates):
    budget = int(0.5 * sum(c.bytes for c in candidates))
    for c, pick in zip(candidates, find_allocator("uniform")(candidates, budget), strict=True):
        assert c.menu.costs[pick] <= 0.5 * c.bytes
        assert c.menu.costs[pick + 1] > 0.5 * c.bytes


def test_energy_equalises_the_energy_kept():
    pair = [candidate(0, 60, 60, 0.95), candidate(1, 60, 60, 0.8, 7.0)]
    picks = find_allocator("energy")(pair, 4 * 2400)
    assert cost(pair, picks) > 4 * (2400 - 2 * 120)
    kept = [1 - c.error[p] / c.menu.total for c, p in zip(pair, picks, strict=True)]
    assert kept[0] == pytest.approx(kept[1], abs=0.06)
    assert pair[0].menu.sizes[picks[0]] > pair[1].menu.sizes[picks[1]]


def test_heavy_tail_cuts_all_spectra_at_one_threshold():
    pair = [candidate(0, 60, 60, 0.9), candidate(1, 60, 60, 0.7, 5.0)]
    picks = find_allocator("heavy_tail")(pair, 4 * 2400)
    assert cost(pair, picks) > 4 * (2400 - 2 * 120)
    edges = []
    for c, p in zip(pair, picks, strict=True):
        s, r = c.menu.spectrum.sqrt(), c.menu.sizes[p]
        s = (s - s[-1]) / (s[0] - s[-1])
        edges.append((float(s[r - 1]), float(s[r])))
    assert max(low for _, low in edges) <= min(high for high, _ in edges)


def test_svd_llm_v2_removes_in_proportion_to_one_over_log_loss():
    trio = [candidate(i, 200, 200, 0.99, 10.0 ** (2 * i)) for i in range(3)]
    budget = int(0.4 * sum(c.bytes for c in trio))
    picks = find_allocator("svd_llm_v2")(trio, budget)
    removed = [1 - c.menu.costs[p] / c.bytes for c, p in zip(trio, picks, strict=True)]
    at_uniform = find_allocator("uniform")(trio, budget)
    weight = [
        1 / math.log(math.e + math.sqrt(100 * c.error[p]))
        for c, p in zip(trio, at_uniform, strict=True)
    ]
    for r, w in zip(removed, weight, strict=True):
        assert r == pytest.approx(3 * 0.6 * w / sum(weight), abs=0.02)


def test_block_influence_removes_by_softmax():
    trio = [candidate(i, 200, 200, weight=w) for i, w in enumerate((0.3, 0.35, 0.4))]
    picks = find_allocator("block_influence")(trio, int(0.6 * 3 * 4 * 40000))
    removed = [1 - c.menu.costs[p] / c.bytes for c, p in zip(trio, picks, strict=True)]
    scores = torch.softmax(-torch.tensor([0.3, 0.35, 0.4]) / 0.1, 0)
    for r, s in zip(removed, scores.tolist(), strict=True):
        assert r == pytest.approx(3 * 0.4 * s, abs=0.02)


def test_an_exact_search_that_would_not_end_is_refused_with_a_remedy(monkeypatch, candidates):
    monkeypatch.setattr("corank.allocation.search.MOST_STEPS", 10)
    with pytest.raises(ValueError, match="round_to"):
        knapsack(candidates, 400)


def test_where_the_exact_search_is_too_long_it_rounds_costs_up_and_keeps_the_budget(
    monkeypatch, candidates
):
    budgets = [int(k / 50 * sum(c.bytes for c in candidates)) for k in range(20, 45)]
    exact = [loss(candidates, knapsack(candidates, budget)) for budget in budgets]
    options = sum(len(c.menu.costs) for c in candidates)
    monkeypatch.setattr("corank.allocation.search.MOST_STEPS", 50 * options)
    monkeypatch.setattr("corank.allocation.search.SHORTER", 2)
    for budget, best in zip(budgets, exact, strict=True):
        picks = knapsack(candidates, budget)
        assert cost(candidates, picks) <= budget
        assert best <= loss(candidates, picks) < loss(candidates, [0] * len(candidates))


def test_an_unknown_allocator_names_the_nearest():
    with pytest.raises(ValueError, match="knapsack"):
        find_allocator("knapsak")


def test_menus_are_checked():
    with pytest.raises(ValueError, match="increase"):
        Menu([1, 2], [5, 5], lambda: [1.0, 1.0])
    with pytest.raises(ValueError, match="cost for each"):
        Menu([1, 2], [5], lambda: [1.0, 1.0])


def test_lorap_gives_values_and_outputs_three_times_the_share_of_queries_and_keys():
    roles = ["q", "k", "v", "o", "up"]
    every = [candidate(i, 64, 64, role=role) for i, role in enumerate(roles)]
    for keep, shares in ((0.4, (0.2, 0.2, 0.6, 0.6, 0.4)), (0.8, (0.6, 0.6, 1.0, 1.0, 0.8))):
        picks = find_allocator("lorap")(every, int(keep * sum(c.bytes for c in every)))
        kept = [c.menu.costs[p] / c.bytes for c, p in zip(every, picks, strict=True)]
        assert all(s - 0.04 < k <= s + 1e-9 for k, s in zip(kept, shares, strict=True))


def test_uniql_takes_at_most_85_percent_of_a_unit_while_others_have_more():
    every = [candidate(i, 64, 64, weight=w) for i, w in enumerate((0.0, 0.2, 0.2))]
    budget = int(0.6 * sum(c.bytes for c in every))
    free, capped = (
        [c.menu.costs[p] / c.bytes for c, p in zip(every, find_allocator(name)(every, budget),
                                                   strict=True)]
        for name in ("block_influence", "uniql")
    )  # fmt: skip
    assert free[0] < 0.04
    assert 0.11 < capped[0] <= 0.15
    assert capped[1] == capped[2] < free[1]
