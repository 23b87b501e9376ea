"""Choosing ranks after a training that served many (DyLoRA, Shears)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from ..control.elastic import rank_groups
from ..control.ranks import truncate
from ..operators import LowRank, Operator
from .record import adapted, find_adapter

Ranks = dict[str, int]


@torch.no_grad()
def set_ranks(model: nn.Module, ranks: int | Mapping[str, int], name: str = "default") -> None:
    """Let an elastic adapter act at these ranks: one for all sites, or site -> rank.

    `compact` then drops the others for good. Raises ValueError for a rank that a site has not,
    an unknown site, or an adapter that is not elastic.
    """
    products = _products(model, name)
    wanted = dict.fromkeys(products, ranks) if isinstance(ranks, int) else ranks
    for site in wanted:
        if site not in products:
            raise ValueError(f"adapter {name!r} is not at {site!r}; it is at {sorted(products)}")
    for site, rank in wanted.items():
        truncate(products[site], rank)


def middle(space: Sequence[int]) -> int:
    """The middle of a space of ranks: the heuristic choice, where a search begins."""
    return space[(len(space) - 1) // 2]


def search_ranks(
    model: nn.Module,
    evaluate: Callable[[], float],
    space: Sequence[int],
    name: str = "default",
    evaluations: int = 50,
) -> Ranks:
    """Search for the site's ranks with the least `evaluate()` (a validation loss); sets them.

    Hill climbing from the middle of `space` for every group of sites (see `rank_groups`): each
    group in turn tries its neighbours in the space, and keeps what is strictly better, until
    nothing improves or `evaluations` are spent. Returns site -> rank.
    """
    ordered = sorted(set(space))
    groups = rank_groups(find_adapter(model, name).sites.values())
    at = [ordered.index(middle(space))] * len(groups)

    def measure(where: Sequence[int]) -> float:
        set_ranks(model, _ranks(groups, ordered, where), name)
        return float(evaluate())

    best, spent, moved = measure(at), 1, True
    while moved:
        moved = False
        for group in range(len(groups)):
            for step in (-1, 1):
                near = [*at]
                near[group] += step
                if not 0 <= near[group] < len(ordered) or spent >= evaluations:
                    continue
                value, spent = measure(near), spent + 1
                if value < best:
                    best, at, moved = value, near, True
                    break
    found = _ranks(groups, ordered, at)
    set_ranks(model, found, name)
    return found


def _ranks(groups: list[list[str]], space: Sequence[int], where: Sequence[int]) -> Ranks:
    return {site: space[i] for group, i in zip(groups, where, strict=True) for site in group}


def _products(model: nn.Module, name: str) -> dict[str, LowRank]:
    find_adapter(model, name)
    return {
        path: _elastic(weight.adapter(name), path, name)
        for path, weight in adapted(model).items()
        if name in weight.names
    }


def _elastic(op: Operator, path: str, name: str) -> LowRank:
    found = [m for m in op.modules() if isinstance(m, LowRank)]
    fixed = len(found) != 1 or (found[0].mask is None) == (found[0].gate is None)
    if fixed or (found[0].gate is not None and found[0].gate.requires_grad):
        raise ValueError(f"adapter {name!r} has no elastic rank at {path}: see dylora, shears")
    return found[0]
