"""Columns scaled before a rewrite, and scaled back by the operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from torch import Tensor

from ..errors import SiteError
from ..metrics import Measure
from ..models import Site
from ..operators import Dense, Diagonal, LowRank, Operator, Product, Scaled, Select, Sum
from .menu import Menu
from .rewrite import Counts, Family, Unit

#: The scales (in,) to try for a weight (out, in) with these statistics, all above 0.
Scales = Callable[[Tensor, Mapping[str, Tensor]], Iterable[Tensor]]


def smoothing(inner: Family, scales: Scales, measure: Measure, needs: frozenset[str]) -> Family:
    """W -> inner(W diag(s)) diag(1/s), with the s of `scales` that errs least in `measure`.

    `inner` sees the statistics that inputs x / s have. `needs` are those that `scales` reads. The
    menu is that of `inner` without scales, or under the scale where there is only one, with the
    bytes of one added. Of a product of matrices the one that meets x first is scaled, or what a
    selection of x leaves.
    """

    def scaled(site: Site, op: Operator) -> Iterator[tuple[Tensor, Unit]]:
        """Each scale to try, and what `inner` sees under it."""
        if site.kind == "embedding":
            raise SiteError(
                site.where, "an embedding reads no inputs that could be scaled",
                "Leave it out of the targets",
            )  # fmt: skip
        weight = op.dense().detach()
        for s in scales(weight, site.stats):
            scale = s.to(weight)
            seen = Unit([_with_inputs_over(scale, site)], [_with_columns_times(scale, op, site)])
            yield scale, seen

    def build(unit: Unit, size: Any) -> list[Operator]:
        return [_best(site, op, size) for site, op in zip(unit.sites, unit.ops, strict=True)]

    def _best(site: Site, op: Operator, size: Any) -> Operator:
        weight = op.dense().detach()
        metric, tried = measure(site.stats), []
        for scale, seen in scaled(site, op):
            made = Product(inner.build(seen, size)[0], Diagonal(1 / scale))
            tried.append((float(metric.loss(weight - made.dense().detach())), made))
        return min(tried, key=lambda pair: pair[0])[1]

    def counts(unit: Unit, size: Any) -> list[Counts]:
        return [
            (numel + op.shape[1], bytes_ + op.shape[1] * op.dtype.itemsize)
            for op, (numel, bytes_) in zip(unit.ops, inner.counts(unit, size), strict=True)
        ]

    def menu(unit: Unit) -> Menu:
        plain = inner.menu(unit)
        costs = [sum(b for _, b in counts(unit, size)) for size in plain.sizes]
        return Menu(plain.sizes, costs, lambda: errors(unit, plain), lambda: plain.spectrum)

    def errors(unit: Unit, plain: Menu) -> list[float]:
        (site,), (op,) = unit.sites, unit.ops
        tried = [seen for _, seen in islice(scaled(site, op), 2)]
        return inner.menu(tried[0]).errors if len(tried) == 1 else plain.errors

    return Family(menu, build, counts, measure, inner.needs | measure.needs | needs)


def _with_columns_times(scale: Tensor, op: Operator, site: Site) -> Operator:
    match op:
        case Dense():
            return Dense(op.weight.detach() * scale)
        case LowRank():
            b, a = op.factors()
            return LowRank(b.detach(), a.detach() * scale)
        case Product():
            *before, first = op.operators
            if before and isinstance(first, Select):
                *before, reader = before
                picked = scale[first.index.long()]
                return Product(*before, _with_columns_times(picked, reader, site), first)
            return Product(*before, _with_columns_times(scale, first, site))
        case Sum():
            return Sum(*(_with_columns_times(scale, term, site) for term in op.operators))
        case Scaled():
            return Scaled(_with_columns_times(scale, op.operator, site), op.scale)
    raise SiteError(
        site.where, f"no matrix in it meets the inputs: a {type(op).__name__} does",
        "Leave it out of the targets, or call corank.merge(model) first",
    )  # fmt: skip


def _with_inputs_over(scale: Tensor, site: Site) -> Site:
    """The site with the statistics of x / scale."""
    stats = dict(site.stats)
    for name in ("mean", "abs_mean", "abs_max"):
        if name in stats:
            stats[name] = stats[name] / scale.to(stats[name])
    if "square_mean" in stats:
        stats["square_mean"] = stats["square_mean"] / scale.to(stats["square_mean"]).square()
    if "gram" in stats:
        inverse = 1 / scale.to(stats["gram"])
        stats["gram"] = inverse[:, None] * stats["gram"] * inverse
    return replace(site, stats=stats)
