"""What each unit is to become: menus and a budget turned into one size for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..allocation import MEASURED, Candidate, find_allocator, uniform
from ..allocation.weights import by_influence, by_sensitivity, by_size
from ..calibration import Batches
from ..errors import DataError, SiteError
from ..models import Site, read
from ..operators import Dense, Operator
from ..registry import Recipe
from ..rewrites import Family, Menu, Size, Unit
from .budget import budget_bytes


@dataclass(frozen=True)
class Plan:
    """One size for each unit; None leaves the unit as it is."""

    units: list[Unit]
    sizes: list[Size]

    @property
    def sites(self) -> list[Site]:
        return [site for unit in self.units for site in unit.sites]

    def of(self, sites: Sequence[Site]) -> Plan:
        """The part of the plan whose units lie within these sites."""
        names = {site.name for site in sites}
        inside = [
            (u, s) for u, s in zip(self.units, self.sizes, strict=True) if u.sites[0].name in names
        ]
        return Plan([u for u, _ in inside], [s for _, s in inside])


def make_plan(
    model: nn.Module,
    groups: Sequence[Sequence[Site]],
    recipe: Recipe,
    *,
    keep: float | None,
    size: str | None,
    rank: int | None,
    round_to: int = 1,
    inputs: Batches | None = None,
    left: Sequence[Site] = (),
) -> Plan:
    """Choose a size for each group of sites, so that the budget is met from below.

    left: targeted sites that no group holds; they stay as they are, within the budget.
    Without a budget the recipe's own rank is taken, or a site's smaller side where that is less.

    Raises ValueError for an impossible budget, rank or multiple, naming the site.
    """
    units = [Unit(list(g), [read(model, site) for site in g]) for g in groups]
    fixed = [Unit([site], [read(model, site)]) for site in left]
    every, stay = [*units, *fixed], [None] * len(fixed)
    if keep is None and size is None and rank is None:
        if (only := only_sizes(recipe, units)) is not None:
            return Plan(every, [*only, *stay])
        if recipe.rank is not None:
            ranks = [_rank(unit, min(recipe.rank, _most(unit))) for unit in units]
            return Plan(every, [*ranks, *stay])
    if sum(x is not None for x in (keep, size, rank)) != 1:
        raise ValueError(
            "say how much is to stay by exactly one of keep= (a fraction of the targeted "
            "weights), size= (of the whole model) and rank= (of every site)"
        )
    if rank is not None:
        only = only_sizes(recipe, units)
        if units and only is not None and None not in only:
            raise ValueError("the method has one size and no ranks: leave rank= out")
        ranks = [_rank(unit, rank) for unit in units]
        return Plan(every, [*ranks, *stay])
    pick = find_allocator(recipe.allocate)
    candidates = [Candidate(u, rounded(_menu(recipe.family, u), round_to)) for u in units]
    candidates += [Candidate(u, Menu([None], [u.bytes], lambda: [0.0])) for u in fixed]
    ops = [op for unit in every for op in unit.ops]
    budget = min(budget_bytes(model, ops, keep=keep, size=size), sum(c.bytes for c in candidates))
    for candidate, weight in zip(
        candidates, _weights(model, candidates, recipe, inputs, budget), strict=True
    ):
        candidate.weight = weight
    picks = pick(candidates, budget)
    return Plan(every, [c.menu.sizes[p] for c, p in zip(candidates, picks, strict=True)])


def only_sizes(recipe: Recipe, units: Sequence[Unit]) -> list[Size] | None:
    """The units' sizes where the method leaves no choice of them, else None.

    Whether to rewrite a unit at all, for which there is one way, is asked under a budget only.
    """
    if recipe.rank is not None:
        return None
    menus = [recipe.family.menu(unit) for unit in units]
    if any(len(menu.sizes) > 1 and menu.sizes != [0, None] for menu in menus):
        return None
    return [menu.sizes[0] for menu in menus]


def shape_only(site: Site, op: Operator) -> Dense:
    """Enough of a weight to ask for sizes, before anything was gathered."""
    return Dense(torch.empty(site.shape, dtype=op.dtype, device="meta"))


def rounded(menu: Menu, multiple: int) -> Menu:
    """The menu with only those sizes that are multiples, besides leaving the unit as it is."""
    if multiple < 1:
        raise ValueError(f"round_to={multiple}: a multiple is at least 1")
    if multiple == 1:
        return menu
    if not any(isinstance(size, int) and size > 0 for size in menu.sizes):
        raise ValueError(f"round_to={multiple}: the method has no ranks to round")
    return menu.at([
        i for i, size in enumerate(menu.sizes) if not isinstance(size, int) or size % multiple == 0
    ])  # fmt: skip


def _menu(family: Family, unit: Unit) -> Menu:
    """The unit's menu, with what new biases cost."""
    menu = family.menu(unit)
    added = sum(bytes_ for _, bytes_ in family.new_biases(unit))
    return menu.dearer(added) if added else menu


def _most(unit: Unit) -> int:
    """The highest rank: the smaller side of the unit's matrices below each other."""
    return min(sum(site.shape[0] for site in unit.sites), unit.sites[0].shape[1])


def _rank(unit: Unit, usual: int) -> int:
    """The site's own rank, or the usual one."""
    rank, most = unit.sites[0].overrides.get("rank", usual), _most(unit)
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= most:
        raise SiteError(
            unit.name,
            f"rank {rank!r} is outside 1 to {most}, the smaller side of its {unit.sites[0].shape}",
            "Ask for a rank in that range, or exclude the site",
        )
    return rank


def _weights(
    model: nn.Module,
    candidates: list[Candidate],
    recipe: Recipe,
    inputs: Batches | None,
    budget: int,
) -> list[float]:
    name, family = recipe.allocate, recipe.family
    if name == "relative":
        return by_size(candidates, family)
    if name not in MEASURED:
        return [1.0] * len(candidates)
    if inputs is None:
        raise DataError(f"allocate={name!r} measures the model on data: give data=")
    if name == "sensitivity":
        return by_sensitivity(model, candidates, family, inputs, budget)
    return by_influence(model, candidates, inputs)


def plan_by_shape(
    model: nn.Module, groups: Sequence[Sequence[Site]], recipe: Recipe, **budget: object
) -> Plan:
    """The plan of the uniform allocation, which looks at nothing but shapes."""
    return make_plan(model, groups, replace(recipe, allocate=uniform), **budget)  # type: ignore[arg-type]
