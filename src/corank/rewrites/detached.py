"""Codes, and beside them a few numbers that stay what they were."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import SiteError
from ..metrics import Measure
from ..models import Site
from ..operators import Operator, Sparse
from ..quantizers import Quantizer
from .factorwise import only_matrix
from .menu import Menu
from .rewrite import Counts, Family, Unit

#: The places that an earlier look at the model chose, as flat indices into W, the first first.
OUTLIERS, SIGNIFICANT = "outliers", "significant"


def detached(
    quantizer: Quantizer,
    expected: Callable[[Site], int],
    measure: Measure,
    names: tuple[str, ...] = (OUTLIERS,),
) -> Family:
    """W -> Q(W less its outliers) + S, where S is sparse and makes the detached places exact.

    The places are the statistics `names` of a site, one after the other; of them the outliers are
    zero in what `quantizer` sees, the others are not. The size is how many of the places are taken;
    the menu holds all of them, or `expected(site)` where there are no statistics yet.
    """

    def build(unit: Unit, size: int) -> list[Operator]:
        (site,), (op,) = unit.sites, unit.ops
        weight = only_matrix(op, site)
        places = torch.cat([site.stats[name] for name in names]).long()
        if size > len(places):
            raise SiteError(
                site.where, f"{size} numbers are to be detached and {len(places)} were chosen",
                "Ask for at most so many",
            )  # fmt: skip
        places = places[:size].to(weight.device)
        return [detach(weight, places, len(site.stats[OUTLIERS]), lambda w: quantizer(w, site))]

    def counts(unit: Unit, size: int) -> list[Counts]:
        (op,) = unit.ops
        numel, bytes_ = quantizer.counts(op.shape, op.dtype)
        index = 4 if op.shape[0] * op.shape[1] <= 2**31 else 8
        return [(numel + size, bytes_ + size * (op.dtype.itemsize + index))]

    def menu(unit: Unit) -> Menu:
        (site,), (op,) = unit.sites, unit.ops
        known = OUTLIERS in site.stats
        size = sum(len(site.stats[name]) for name in names) if known else expected(site)

        def errors() -> list[float]:
            lost = op.dense().detach() - build(unit, size)[0].dense().detach()
            return [float(measure(site.stats).loss(lost))]

        return Menu([size], [counts(unit, size)[0][1]], errors)

    return Family(menu, build, counts, measure, quantizer.needs | measure.needs | {*names})


def detach(
    weight: Tensor, places: Tensor, outliers: int, quantizer: Callable[[Tensor], Operator]
) -> Operator:
    """Codes of `weight` without the first `outliers` of its flat `places`, which are then exact."""
    flat = weight.flatten()
    coarse = quantizer(flat.index_fill(0, places[:outliers], 0).view_as(weight))
    if not len(places):
        return coarse
    index = places.sort().values
    values = (flat - coarse.dense().detach().flatten()).index_select(0, index)
    kept = index.int() if weight.numel() <= 2**31 else index
    return coarse + Sparse(values, kept, (weight.shape[0], weight.shape[1]))
