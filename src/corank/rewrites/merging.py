"""Experts that do alike, merged: one matrix for all of a cluster."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..errors import SiteError
from ..linalg import balance, eigh_clamped, k_means
from ..metrics import Measure
from ..metrics.metric import times
from ..models import Site
from ..operators import Dense, LowRank, Operator
from .building import error_of
from .decomposed import wide
from .menu import Menu
from .rewrite import Counts, Family, Unit


def merging(measure: Measure, kept: float = 1.0) -> Family:
    """W_e -> one M for each cluster of experts: the size is the number of clusters.

    Experts are clustered by the cosines of their outputs, and so in all their projections alike.
    With C_e = L_e L_e^T the moment of an expert's inputs in `measure`, and the cluster's side by
    side [W_1 L_1, W_2 L_2, ...] = U S [V_1, V_2, ...], M = U S V with V the mean of the V_e L_e^-1
    weighted by how often they are routed to, plain where none ever is. That is U U^T times the mean
    of the W_e, so no L_e is inverted. kept: the part of the directions in U that stay, in (0, 1];
    below 1, M is stored as two factors. What a cluster shares is counted with the first.
    Errors are means over the tokens of the layer.
    """
    return Family(
        menu=partial(_menu, measure, kept),
        build=partial(_build, measure, kept),
        counts=partial(_counts, kept),
        measure=measure,
        needs=measure.needs | {"output_cosines"},
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


def _build(measure: Measure, kept: float, unit: Unit, count: int) -> list[Operator]:
    clusters, made = _clusters(unit, count), list(unit.ops)
    for places in _projections(unit):
        for cluster in range(count):
            inside = [p for p in places if clusters[_number(unit.sites[p])] == cluster]
            weights = torch.stack([wide(unit.ops[p]) for p in inside])
            often = torch.stack([unit.sites[p].stat("tokens").to(weights) for p in inside])
            moments = [measure(unit.sites[p].stats).right for p in inside]
            op = _merged(weights, moments, often, _rank(kept, unit.sites[inside[0]].shape))
            shared = op.to(unit.ops[inside[0]].dtype)
            for place in inside:
                made[place] = shared
    return made


def _merged(
    weights: Tensor, moments: Sequence[Tensor | None], often: Tensor, rank: int | None
) -> Operator:
    """One operator for weights (count, out, in) that are routed to so often (count,)."""
    total = often.sum()
    shares = often / total if total > 0 else torch.full_like(often, 1 / len(often))
    mean = torch.einsum("e,eij->ij", shares, weights)
    if rank is None:
        return Dense(mean)
    joint = torch.zeros(mean.shape[0], mean.shape[0]).to(mean)
    for weight, moment in zip(weights, moments, strict=True):
        joint += weight @ times(moment, weight.mT)
    u = eigh_clamped(joint)[1][:, :rank]
    return LowRank(*balance(u, u.mT @ mean, weights.dtype))


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


def _menu(measure: Measure, kept: float, unit: Unit) -> Menu:
    sizes: list[int | None] = [*range(1, len(_numbers(unit)) + 1)]
    costs = [sum(bytes_ for _, bytes_ in _counts(kept, unit, size)) for size in sizes]
    if costs[-1] < unit.bytes:
        sizes, costs = [*sizes, None], [*costs, unit.bytes]

    return Menu(sizes, costs, lambda: [_error(measure, kept, unit, size) for size in sizes])


def _error(measure: Measure, kept: float, unit: Unit, size: int | None) -> float:
    """The mean over the layer's tokens, where each meets the experts that it is routed to."""
    made = unit.ops if size is None else _build(measure, kept, unit, size)
    often = [float(site.stat("tokens")) for site in unit.sites]
    return sum(
        count / max(sum(often), 1.0) * error_of(Unit([site], [op]), [now], measure)
        for count, site, op, now in zip(often, unit.sites, unit.ops, made, strict=True)
    )
