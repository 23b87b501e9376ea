"""Some outputs as they are, and the others made of them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..linalg import complement, interpolation_errors, interpolative
from ..metrics import Measure
from ..metrics.metric import times
from ..operators import BlockRows, Dense, Operator, Permutation, Product
from .adapting import require_rank
from .decomposed import wide
from .menu import Menu
from .rewrite import Counts, Family, Unit

#: Bytes of a place in an order.
_PLACE = 4


def interpolation(measure: Measure) -> Family:
    """W -> P [I; T] W[rows]: r rows of W, and T that makes the other outputs from theirs.

    Rows and T are those of the interpolative decomposition of (W C^(1/2))^T, C the inputs' moment
    in `measure`, which has no other side. r (out + in - r) numbers, never more than W has.
    """
    return Family(
        partial(_menu, measure), partial(_build, measure), _counts, measure, measure.needs,
        matrices=_matrices,
    )  # fmt: skip


def _menu(measure: Measure, unit: Unit) -> Menu:
    ranks = range(1, min(unit.ops[0].shape) + 1)
    costs = {rank: _counts(unit, rank)[0][1] for rank in ranks}
    paying = [rank for rank in ranks if costs[rank] < unit.bytes]

    def errors() -> list[float]:
        lost = interpolation_errors(*_outputs(measure, unit)).tolist()
        return [*(lost[rank] for rank in paying), 0.0]

    return Menu([*paying, None], [*(costs[rank] for rank in paying), unit.bytes], errors)


def _build(measure: Measure, unit: Unit, rank: int) -> list[Operator]:
    (site,), (op,) = unit.sites, unit.ops
    require_rank(rank, site)
    outputs, weighed = _outputs(measure, unit)
    rows, t = interpolative(outputs, rank, weighed)
    order = torch.cat([rows, complement(rows, site.shape[0])])
    made = torch.arange(rank, dtype=torch.int32, device=op.device)
    return [
        Product(
            Permutation(order.argsort().int()),
            BlockRows(Permutation(made), Dense(t.mT.to(op.dtype).contiguous())),
            Dense(wide(op)[rows].to(op.dtype).contiguous()),
        )
    ]


def _outputs(measure: Measure, unit: Unit) -> tuple[Tensor, Tensor]:
    """W^T and C W^T, (in, out): an output is a column."""
    (site,), (op,) = unit.sites, unit.ops
    columns = wide(op).double().mT
    return columns, times(measure(site.stats).right, columns)


def _counts(unit: Unit, rank: int | None) -> list[Counts]:
    (op,) = unit.ops
    if rank is None:
        return [(op.numel(), op.bytes())]
    out, into = op.shape
    numel = rank * (out + into - rank)
    return [(numel, numel * op.dtype.itemsize + (rank + out) * _PLACE)]


def _matrices(unit: Unit, rank: int) -> list[list[tuple[int, int]]]:
    out, into = unit.ops[0].shape
    return [[(out - rank, rank), (rank, into)]]
