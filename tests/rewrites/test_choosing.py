"""Menus put together: what is offered, and what an allocator makes of them."""

import itertools

import pytest
import torch

from corank.allocation import Candidate, cost, integer_program
from corank.metrics import euclidean, second_moment
from corank.models import Site
from corank.operators import Dense
from corank.quantizers import round_to_nearest
from corank.rewrites import Unit, any_of, compensation, only, truncation


def unit(seed, scale=1.0, device="cpu"):
    w = scale * torch.randn(24, 16, generator=torch.Generator().manual_seed(seed))
    site = Site(str(seed), "q", 0, (24, 16), False, "linear")
    return Unit([site], [Dense(w.to(device))])


def either():
    return any_of({
        bits: compensation(round_to_nearest(bits, 8), truncation(euclidean())) for bits in (2, 4)
    })  # fmt: skip


def test_the_menu_offers_only_what_is_worth_its_bytes_and_builds_what_it_says():
    given = unit(0)
    menu = either().menu(given)
    assert menu.errors == sorted(menu.errors, reverse=True)
    assert {bits for bits, _ in menu.sizes} == {2, 4}
    for size, cost_, error in zip(menu.sizes, menu.costs, menu.errors, strict=True):
        (op,) = either().build(given, size)
        assert op.bytes() == cost_
        assert float((op.dense() - given.ops[0].dense()).square().sum()) == pytest.approx(
            error, rel=1e-3, abs=1e-8
        )


def test_on_the_meta_device_the_menu_is_by_cost_alone():
    menu = either().menu(unit(0, device="meta"))
    assert len(menu.sizes) > 4
    assert set(menu.errors) == {0.0}


def test_before_calibration_the_menu_is_by_cost_alone():
    family = any_of({r: truncation(second_moment(r)) for r in (0.0, 0.1)})
    assert set(family.menu(unit(0)).errors) == {0.0}
    given = unit(0)
    given.sites[0].stats = {"gram": torch.eye(16)}
    assert family.menu(given).errors[0] > 0


def test_one_size_can_be_picked_out():
    family = compensation(round_to_nearest(4, 8), truncation(euclidean()))
    given = unit(0)
    menu, whole = only(family, 3).menu(given), family.menu(given)
    index = whole.sizes.index(3)
    assert (menu.sizes, menu.costs) == ([3], [whole.costs[index]])
    assert menu.errors == [whole.errors[index]]


@pytest.mark.parametrize("share", [0.25, 0.3, 0.45])
def test_the_integer_program_is_the_brute_force_optimum(share):
    units = [unit(0), unit(1, 3.0), unit(2, 0.5)]
    menus = [either().menu(u).at(range(0, len(either().menu(u).sizes), 3)) for u in units]
    candidates = [Candidate(u, m) for u, m in zip(units, menus, strict=True)]
    budget = int(share * sum(c.bytes for c in candidates))

    def loss(picks):
        return sum(c.error[p] for c, p in zip(candidates, picks, strict=True))

    every = map(list, itertools.product(*(range(len(m.costs)) for m in menus)))
    best = min(loss(p) for p in every if cost(candidates, p) <= budget)
    picks = integer_program(candidates, budget)
    assert cost(candidates, picks) <= budget
    assert loss(picks) <= best * (1 + 1e-3)


def test_a_rank_alone_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match="keep="):
        either().build(unit(0), 3)
