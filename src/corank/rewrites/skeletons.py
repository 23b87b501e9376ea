"""A matrix by some of its own columns and rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..linalg import exact_svd
from ..metrics import Measure, Metric, euclidean
from ..operators import Dense, Operator, Product
from .adapting import require_rank
from .building import error_in, menu_by_building
from .decomposed import wide
from .menu import Menu
from .rewrite import Counts, Family, Unit

#: Rows of a basis (m, r) -> their indices (r,).
Selection = Callable[[Tensor], Tensor]


def skeleton(importance: Measure, select: Selection) -> Family:
    """W -> C U R: r of its columns, r of its rows, and U = C^+ W R^+ between them.

    Which ones is chosen by `select` from the leading singular vectors of |W| with its rows and
    columns scaled by the roots of the diagonals that `importance` has. The errors of the menu are
    those of the Frobenius norm, found by building every size.
    """
    build = partial(_build, importance, select)

    def menu(unit: Unit) -> Menu:
        sizes = range(1, min(unit.ops[0].shape) + 1)
        return menu_by_building(unit, sizes, _counts, build, error_in(euclidean()))

    return Family(menu, build, _counts, euclidean(), importance.needs, matrices=_matrices)


def _build(importance: Measure, select: Selection, unit: Unit, rank: int) -> list[Operator]:
    (site,), (op,) = unit.sites, unit.ops
    require_rank(rank, site)
    weight = wide(op)
    u, _, vh, _ = exact_svd(_scores(weight, importance(site.stats)))
    rows = select(u[:, :rank]).sort().values
    columns = select(vh[:rank].mT).sort().values
    c, r = weight[:, columns], weight[rows]
    link = torch.linalg.pinv(c.double()) @ weight.double() @ torch.linalg.pinv(r.double())
    parts = (part.to(op.dtype).contiguous() for part in (c, link, r))
    return [Product(*map(Dense, parts))]


def _scores(weight: Tensor, metric: Metric) -> Tensor:
    scores = weight.abs()
    if metric.left is not None:
        scores = scores * _sizes(metric.left).to(scores)[:, None]
    if metric.right is not None:
        scores = scores * _sizes(metric.right).to(scores)
    return scores


def _sizes(moment: Tensor) -> Tensor:
    return (moment if moment.ndim == 1 else moment.diagonal()).clamp_min(0).sqrt()


def _counts(unit: Unit, rank: int | None) -> list[Counts]:
    (op,) = unit.ops
    if rank is None:
        return [(op.numel(), op.bytes())]
    numel = rank * (sum(op.shape) + rank)
    return [(numel, numel * op.dtype.itemsize)]


def _matrices(unit: Unit, rank: int) -> list[list[tuple[int, int]]]:
    out, into = unit.ops[0].shape
    return [[(out, rank), (rank, rank), (rank, into)]]
