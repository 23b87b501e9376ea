"""Experts that do alike, merged: one matrix for all of a cluster."""

from __future__ import annotations

from collections import defaultdict
from functools import partial

import torch
from torch import Tensor

from ..errors import SiteError
from ..linalg import balance, k_means
from ..metrics import euclidean
from ..models import Site
from ..operators import Dense, LowRank, Operator
from .building import error_of
from .decomposed import wide
from .menu import Menu
from .rewrite import Counts, Family, Unit


def merging(kept: float = 1.0) -> Family:
    """W_e -> one M for each cluster of experts: the size is the number of clusters.

    Experts are clustered by the cosines of their outputs, and so in all their projections alike.
    With [W_1, W_2, ...] = U S [V_1, V_2, ...] the cluster's side by side, M = U S V with V the mean
    of the V_e weighted by how often they are routed to, plain where none ever is: that is the mean
    of the W_e. kept: the part of the directions in U that stay, in (0, 1]; below 1, M is U S
    times V, stored as two factors. What a cluster shares is counted with the first.
    """
    return Family(
        menu=partial(_menu, kept),
        build=partial(_build, kept),
        counts=partial(_counts, kept),
        needs=frozenset({"output_cosines"}),
    )


def _number(site: Site) -> int:
    return site.expert[2] if site.kind == "expert" else 0


def _numbers(unit: Unit) -> list[int]:
    """The experts of the unit."""
    return sorted({_number(site) for site in unit.sites})


def _projections(unit: Unit) -> list[list[int]]:
    """The places of each projection's weights in the unit."""
    found: dict[str, list[int]] = defaultdict(list)
    for place, site in enumerate(unit.sites):
        found[site.expert[1] if site.kind == "expert" else site.name].append(place)
    if len({len(places) for places in found.values()}) > 1:
        raise SiteError(
            unit.name, "the targets name other experts for one projection than for another",
            "Target both projections of an expert, or of all experts the same one",
        )  # fmt: skip
    return list(found.values())


def _rank(kept: float, shape: tuple[int, int]) -> int | None:
    return None if kept == 1 else max(1, round(kept * min(shape)))


def _clusters(unit: Unit, count: int) -> dict[int, int]:
    """The cluster of each expert."""
    numbers = _numbers(unit)
    if not 1 <= count <= len(numbers):
        raise SiteError(
            unit.sites[0].where, f"{count} is outside 1 to its layer's {len(numbers)} experts",
            "Ask for a rank, the number of experts that stay, in that range",
        )  # fmt: skip
    rows = {_number(site): site.stat("output_cosines") for site in unit.sites}
    products = torch.stack([rows[number][numbers] for number in numbers])
    return dict(zip(numbers, k_means(products, count).tolist(), strict=True))


def _build(kept: float, unit: Unit, count: int) -> list[Operator]:
    clusters, made = _clusters(unit, count), list(unit.ops)
    for places in _projections(unit):
        for cluster in range(count):
            inside = [p for p in places if clusters[_number(unit.sites[p])] == cluster]
            weights = torch.stack([wide(unit.ops[p]) for p in inside])
            often = torch.stack([unit.sites[p].stat("tokens").to(weights) for p in inside])
            op = _merged(weights, often, _rank(kept, unit.sites[inside[0]].shape))
            shared = op.to(unit.ops[inside[0]].dtype)
            for place in inside:
                made[place] = shared
    return made


def _merged(weights: Tensor, often: Tensor, rank: int | None) -> Operator:
    """One operator for weights (count, out, in) that are routed to so often (count,)."""
    total = often.sum()
    shares = often / total if total > 0 else torch.full_like(often, 1 / len(often))
    if rank is None:
        return Dense(torch.einsum("e,eij->ij", shares, weights))
    u, s, vh = torch.linalg.svd(torch.cat([*weights], 1), full_matrices=False)
    right = torch.einsum("e,rej->rj", shares, vh[:rank].unflatten(1, (len(weights), -1)))
    return LowRank(*balance(u[:, :rank] * s[:rank], right, weights.dtype))


def _counts(kept: float, unit: Unit, count: int | None) -> list[Counts]:
    """Which experts come first in their clusters is not known from shapes: told of the first."""
    if count is None:
        return [(op.numel(), op.bytes()) for op in unit.ops]
    found = [(0, 0)] * len(unit.ops)
    for places in _projections(unit):
        for place in places[:count]:
            op = unit.ops[place]
            rank = _rank(kept, op.shape)
            numel = op.shape[0] * op.shape[1] if rank is None else rank * sum(op.shape)
            found[place] = (numel, numel * op.dtype.itemsize)
    return found


def _menu(kept: float, unit: Unit) -> Menu:
    sizes: list[int | None] = [*range(1, len(_numbers(unit)) + 1)]
    costs = [sum(bytes_ for _, bytes_ in _counts(kept, unit, size)) for size in sizes]
    if costs[-1] < unit.bytes:
        sizes, costs = [*sizes, None], [*costs, unit.bytes]

    def error(size: int | None) -> float:
        made = unit.ops if size is None else _build(kept, unit, size)
        return error_of(unit, made, euclidean())

    return Menu(sizes, costs, lambda: [error(size) for size in sizes])
