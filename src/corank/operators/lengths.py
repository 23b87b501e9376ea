"""How long the rows or columns of a matrix are, where it need not be written down."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from .cost import dense_flops
from .low_rank import LowRank
from .operator import Operator
from .precision import without_autocast
from .scaled import Scaled
from .sum import Sum


def squares(op: Operator, axis: int) -> Tensor:
    """Squared lengths of W's rows (axis 1, gives (out,)) or columns (axis 0), in fp32 or wider.

    What a sum adds of low rank is met through its factors: a row w + b a has the square
    |w|^2 + 2 b.(w a.T) + b (a a.T) b, so no dense sum is made or kept.
    """
    low, others = _terms(op)
    with without_autocast(op.device):
        dense = reduce(torch.add, [term.dense() for term in others]) if others else None
        kinds = {leaf.dtype for _, term in low for leaf in (term.b, term.a)}
        kinds |= set() if dense is None else {dense.dtype}
        dtype = reduce(torch.promote_types, kinds, torch.float32)
        if dense is None:
            b, a = _stacked(low, axis, dtype)
            return torch.linalg.vecdot(b @ (a @ a.mT), b)
        total: Tensor = torch.linalg.vector_norm(dense, dim=axis, dtype=dtype).square()
        if low:
            b, a = _stacked(low, axis, dtype)
            met = (dense if axis == 1 else dense.mT).to(dtype) @ a.mT
            total = total + torch.linalg.vecdot(2 * met + b @ (a @ a.mT), b)
    return total


def _stacked(low: list[tuple[float, LowRank]], axis: int, dtype: torch.dtype) -> Sequence[Tensor]:
    """Two factors of the sum of scaled low-rank terms, or of its transpose for axis 0."""
    b = torch.cat([scale * term.factors()[0].to(dtype) for scale, term in low], 1)
    a = torch.cat([term.factors()[1].to(dtype) for _, term in low], 0)
    return (b, a) if axis == 1 else (a.mT, b.mT)


def squares_flops(op: Operator, axis: int) -> int:
    """Floating point operations of `squares`."""
    low, others = _terms(op)
    side, length = op.shape[1 - axis], op.shape[axis]
    rank = sum(term.rank for _, term in low)
    flops = sum(term.folding_flops() for _, term in low)
    flops += rank * side + 2 * rank * rank * (length + side) + 2 * rank * side
    if others:
        flops += sum(dense_flops(term) for term in others)
        flops += (len(others) - 1) * side * length + 2 * side * length * (1 + rank)
    return flops


def _terms(op: Operator) -> tuple[list[tuple[float, LowRank]], list[Operator]]:
    """The low-rank terms of a sum with their scales, and the others."""
    low: list[tuple[float, LowRank]] = []
    others: list[Operator] = []
    for term in op.operators if isinstance(op, Sum) else (op,):
        inner, scale = (term.operator, term.scale) if isinstance(term, Scaled) else (term, 1.0)
        if isinstance(inner, LowRank):
            low.append((scale, inner))
        else:
            others.append(term)
    return low, others
