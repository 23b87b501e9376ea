"""The best low-rank matrix in a metric: the one solver behind most compression methods."""

from __future__ import annotations

from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from ..errors import SiteError
from ..linalg import balance, root_psd, two_sided
from ..metrics import Measure, Metric
from ..metrics.metric import times
from ..models import Site
from ..operators import LowRank, Operator
from .menu import Menu, menu_of_ranks
from .rewrite import Counts, Family, Unit


def truncation(measure: Measure) -> Family:
    """W -> b a, the minimiser of `measure` over matrices of rank r.

    A unit of several sites is stacked, and its sites share one a: W_i -> b_i a.
    """
    return Family(
        menu=partial(_menu, measure), build=partial(_build, measure), counts=_counts,
        measure=measure, needs=measure.needs, matrices=_matrices,
    )  # fmt: skip


def _menu(measure: Measure, unit: Unit) -> Menu:
    rows = sum(site.shape[0] for site in unit.sites)
    columns = unit.sites[0].shape[1]
    costs = {r: sum(b for _, b in _counts(unit, r)) for r in range(1, min(rows, columns) + 1)}
    dense = unit.bytes
    paying = [r for r, bytes_ in costs.items() if bytes_ < dense]
    return menu_of_ranks(
        [*paying, None],
        [*(costs[r] for r in paying), dense],
        lambda: spectrum(_stack(measure, unit), _metric(measure, unit)),
    )


def _counts(unit: Unit, rank: int | None) -> list[Counts]:
    if rank is None:
        return [(op.numel(), op.bytes()) for op in unit.ops]
    numels = [sum(map(prod, shapes)) for shapes in _matrices(unit, rank)]
    return [(n, n * op.dtype.itemsize) for n, op in zip(numels, unit.ops, strict=True)]


def _matrices(unit: Unit, rank: int) -> list[list[tuple[int, int]]]:
    shapes = [[(site.shape[0], rank)] for site in unit.sites]
    shapes[0].append((rank, unit.sites[0].shape[1]))
    return shapes


def _build(measure: Measure, unit: Unit, rank: int) -> list[Operator]:
    weight = _stack(measure, unit)
    if not 1 <= rank <= min(weight.shape):
        raise SiteError(
            unit.name,
            f"rank {rank} is outside 1 to {min(weight.shape)}, the smaller side of "
            f"{tuple(weight.shape)}",
            "Ask for a rank in that range",
        )
    metric = _metric(measure, unit)
    b, a = two_sided(weight, metric.left, metric.right, rank, generator=unit.sites[0].generator())
    b, a = balance(b, a, unit.ops[0].dtype)
    shared = nn.Parameter(a.contiguous(), requires_grad=False)
    rows = b.split([site.shape[0] for site in unit.sites])
    return [LowRank(part.contiguous(), shared) for part in rows]


def spectrum(weight: Tensor, metric: Metric) -> Tensor:
    """Squared singular values of A^(1/2) W C^(1/2), descending, length min(weight.shape), fp64.

    They are the eigenvalues of A^(1/2) W C W^T A^(1/2), so only the smaller side needs a root.
    """
    weight, outer, inner = weight.double(), metric.left, metric.right
    if weight.shape[0] > weight.shape[1]:
        weight, outer, inner = weight.mT, inner, outer
    product = weight @ times(inner, weight.mT)
    if outer is not None:
        outer = outer.double()
        root = outer.sqrt() if outer.ndim == 1 else root_psd(outer).mT
        product = times(root, times(root, product).mT)
    values = torch.linalg.eigvalsh(product).flip(0).clamp_min(0)
    return torch.cat([values, values.new_zeros(len(weight) - len(values))])


def _stack(measure: Measure, unit: Unit) -> Tensor:
    stacked = torch.cat(
        [_weight(measure, s, op) for s, op in zip(unit.sites, unit.ops, strict=True)]
    )
    return stacked if stacked.dtype == torch.float64 else stacked.float()


def _weight(measure: Measure, site: Site, op: Operator) -> Tensor:
    weight = op.dense().detach()
    if not torch.isfinite(weight).all():
        raise SiteError(site.where, "its weight has NaN or infinite values", "Repair or exclude it")
    if measure.centred and site.kind == "embedding":
        counts = site.stats["row_counts"].to(weight)
        return weight - counts @ weight / counts.sum()
    return weight


def _metric(measure: Measure, unit: Unit) -> Metric:
    metrics = [measure(site.stats) for site in unit.sites]
    if len(metrics) == 1:
        return metrics[0]
    if any(m.left is not None or m.elementwise is not None for m in metrics):
        raise ValueError("sites can share a factor only in a metric of their inputs")
    rights = [m.right for m in metrics if m.right is not None]
    if not rights:
        return Metric()
    if all(r is rights[0] for r in rights):
        return Metric(right=rights[0])
    return Metric(right=torch.stack(rights).mean(0))
