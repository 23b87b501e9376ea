"""Fewer inner channels, the same ones in all the weights that share them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..errors import SiteError
from ..linalg import lower_root
from ..metrics import Measure
from ..metrics.metric import times
from ..operators import Operator
from .cuttable import layout_of
from .layout import Layout
from .menu import Menu
from .rewrite import Counts, Family, Unit

#: Relative ridge on the moment of the channels that stay, when a reader is refitted to them.
RIDGE = 1e-6

#: How much each channel (width,) of a unit matters.
Importance = Callable[[Unit, Layout], Tensor]


def narrowing(
    measure: Measure, importance: Importance, refit: bool = False, least: float = 0.0
) -> Family:
    """Makers keep some rows and readers those columns: W -> S^T W_S, W -> W_S S.

    The size is how many channels stay. They are the most important ones, each head's own, and of
    all channels the share `least` that is least important. refit: a reader gets the columns that
    give its outputs back best in `measure` from the channels that stay.

    The error is that of the reader's outputs; where nothing reads the channels, that of the makers'
    outputs, and of q and k the product of both, summed over the dimensions that go. Units that have
    to stay whole have no other choice.
    """
    order = partial(_order, importance, least)
    return Family(
        menu=partial(_menu, measure, order, refit),
        build=partial(_build, measure, order, refit),
        counts=_counts,
        measure=measure,
        needs=measure.needs,
    )


def by_leverage(measure: Measure, ridge: float) -> Importance:
    """What of a channel the others do not tell, 1 / diag((C + ridge I)^-1), as its reader sees C.

    The order is that of the ridge leverage scores, diag(C (C + ridge I)^-1). `ridge` is relative
    to C's mean eigenvalue. Where nothing reads the channels, by `energies`.
    """

    def importance(unit: Unit, layout: Layout) -> Tensor:
        moment = _moment_read(measure, unit, layout)
        if moment is None:
            return energies(measure, unit, layout)
        return leverages(moment, ridge)

    return importance


def leverages(moment: Tensor, ridge: float) -> Tensor:
    """1 / diag((C + ridge I)^-1) of a moment (n, n), `ridge` relative to its mean eigenvalue."""
    return 1 / torch.cholesky_inverse(lower_root(moment, ridge)).diagonal()


def by_magnitude(measure: Measure) -> Importance:
    """The norms of a channel's rows and columns in the metric, summed over the sites."""

    def importance(unit: Unit, layout: Layout) -> Tensor:
        total = torch.zeros(layout.width, dtype=torch.float64)
        for i, (site, op) in enumerate(zip(unit.sites, unit.ops, strict=True)):
            weight = op.dense().detach().double()
            squares = weight * times(measure(site.stats).right, weight.mT).mT
            summed = squares.sum(0 if layout.reads[i] else 1)
            norms = summed.clamp_min(0).sqrt()[layout.places[i].to(summed.device)]
            total = total.to(norms) + norms.sum(1)
        return total

    return importance


def energies(measure: Measure, unit: Unit, layout: Layout) -> Tensor:
    """E y^2 of the makers' outputs y, multiplied over makers and summed over copies, (width,).

    Of q and k it is what the products of queries and keys owe to a dimension. Turned by all angles,
    the dimensions of a rotary pair come to have the same moment, so a unit's are averaged.
    """
    (run,), product = layout.runs, torch.ones(1, 1, dtype=torch.float64)
    for site, op, places in zip(unit.sites, unit.ops, layout.places, strict=True):
        weight = op.dense().detach().double()
        output = (weight * times(measure(site.stats).right, weight.mT).mT).sum(1).clamp_min(0)
        units = run.grouped(output[places.to(output.device)])  # (heads, count, s, copies)
        product = product.to(output) * run.spread(units.mean(2, keepdim=True).expand_as(units))
    return product.sum(1)


def _order(importance: Importance, least: float, unit: Unit, layout: Layout) -> Tensor:
    order = layout.order(importance(unit, layout))
    steps = order.view(-1, layout.step)
    saved = int(least * len(steps))
    return torch.cat([steps[len(steps) - saved :], steps[: len(steps) - saved]]).flatten()


def _moment_read(measure: Measure, unit: Unit, layout: Layout) -> Tensor | None:
    """The channels' second moment (width, width) or its diagonal, where a site reads them."""
    if not layout.reads[-1]:
        return None
    site = unit.sites[-1]
    right = measure(site.stats).right
    if right is None:
        raise SiteError(site.where, "nothing says how its inputs vary", "Give data=")
    return right.double()


def _counts(unit: Unit, size: int | None) -> list[Counts]:
    layout = layout_of(unit)
    if layout is None or size is None:
        return [(op.numel(), op.bytes()) for op in unit.ops]
    return layout.counts(unit, size)


def _build(
    measure: Measure,
    order: Callable[[Unit, Layout], Tensor],
    refit: bool,
    unit: Unit,
    size: int,
) -> list[Operator]:
    layout = layout_of(unit)
    if layout is None:
        raise SiteError(unit.name, "it has no inner channels that could go", "Leave it out")
    layout.require(unit, size)
    every = order(unit, layout)
    kept = every[:size]
    parts = [layout.part(i, op.dense().detach(), kept) for i, op in enumerate(unit.ops)]
    moment = _moment_read(measure, unit, layout)
    if refit and moment is not None and moment.ndim == 2 and size < layout.width:
        weight, gone = unit.ops[-1].dense().detach().double(), every[size:]
        lost = weight[:, gone] @ moment[gone][:, kept]
        root = lower_root(moment[kept][:, kept], RIDGE)
        parts[-1] = weight[:, kept] + torch.cholesky_solve(lost.mT, root).mT
    return layout.assemble(unit, kept, parts)


def _menu(
    measure: Measure, order: Callable[[Unit, Layout], Tensor], refit: bool, unit: Unit
) -> Menu:
    layout = layout_of(unit)
    if layout is None:
        return Menu([None], [unit.bytes], lambda: [0.0])
    paying = layout.paying(unit)

    def errors() -> list[float]:
        lost = _lost(measure, unit, layout, order(unit, layout), refit)
        return [*(float(lost[size]) for size in paying), 0.0]

    return Menu([*paying, None], [*paying.values(), unit.bytes], errors)


def _lost(measure: Measure, unit: Unit, layout: Layout, order: Tensor, refit: bool) -> Tensor:
    """The error after the first k channels of `order`, for k = 0 to width."""
    moment = _moment_read(measure, unit, layout)
    if moment is None:
        return tails(energies(measure, unit, layout)[order])
    weight = unit.ops[-1].dense().detach().double()[:, order]
    if moment.ndim == 1:
        return tails(weight.square().sum(0) * moment[order])
    moment = moment[order][:, order]
    if refit:  # what is left of C is the product of the columns that its root still has
        return tails((weight @ lower_root(moment, RIDGE)).square().sum(0))
    return unread(weight, moment)


def unread(weight: Tensor, moment: Tensor) -> Tensor:
    """The outputs' error where `weight` (m, n) reads its first k inputs only, k = 0 to n."""
    shares = ((weight.mT @ weight) * moment).flip(0, 1).cumsum(0).cumsum(1).diagonal()
    return torch.cat([shares.new_zeros(1), shares]).flip(0).clamp_min(0)


def tails(energy: Tensor) -> Tensor:
    """The sum of all but the first k energies (n,), for k = 0 to n."""
    return torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)])
