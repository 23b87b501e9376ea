"""Two matrices whose product an operator is, where its structure says so."""

from __future__ import annotations

from functools import reduce, singledispatch

import torch
from torch import Tensor

from .adapted import additions
from .base import Base
from .blocks import BlockColumns, BlockRows
from .hadamard import Hadamard
from .kron import Kron
from .low_rank import LowRank
from .operator import Operator
from .product import Product
from .reflections import Reflections
from .scaled import Scaled
from .sum import Sum
from .transpose import Transpose, adjoint

#: b (out, r) and a (r, in).
Factors = tuple[Tensor, Tensor]


def low_rank_update(op: Operator) -> Factors | None:
    """b, a with b a = W' - W for an adapter's W' over a `Base`, exact but for rounding.

    None where the update does not follow from the structure as one of less than full rank.
    """
    if isinstance(op, Product):
        return _around_the_base(op)
    added = additions(op)
    if not added:
        return None
    terms = [low_rank_form(term) for term in added]
    known = [pair for pair in terms if pair is not None]
    return _side_by_side(known) if len(known) == len(terms) and _low(known, op) else None


def _around_the_base(op: Product) -> Factors | None:
    """For L W R with L = I + b1 a1 and R = I + b2 a2: b1 (a1 W R) + (W b2) a2."""
    factors = list(op.operators)
    bases = [i for i, factor in enumerate(factors) if isinstance(factor, Base)]
    moves = {i: beyond_identity(f) for i, f in enumerate(factors) if i not in bases}
    if len(bases) != 1:
        return None
    pairs = []
    for i, pair in moves.items():
        if pair is None:
            return None
        # L1 L2 W - W = (L1 - I) L2 W + (L2 - I) W, and so on, from the left; on the right, the
        # factors between W and this one are already applied.
        b, a = pair
        if i < bases[0]:
            for factor in factors[i + 1 :]:
                a = _right(a, factor)
        else:
            for factor in reversed(factors[bases[0] : i]):
                b = _left(factor, b)
        pairs.append((b, a))
    return _side_by_side(pairs) if _low(pairs, op) else None


@singledispatch
def beyond_identity(op: Operator) -> Factors | None:
    """b, a with b a = W - I, where the structure shows that it is of low rank; else None."""
    return None


@beyond_identity.register
def _reflections(op: Reflections) -> Factors | None:
    u = op.u.to(torch.promote_types(op.u.dtype, torch.float32))
    return -(op._core() @ u).mT, u


@singledispatch
def low_rank_form(op: Operator) -> Factors | None:
    """b, a with b a = W, of a rank below full that the structure shows; None without a rule."""
    return None


@low_rank_form.register
def _low_rank(op: LowRank) -> Factors | None:
    return op.factors()


@low_rank_form.register
def _scaled(op: Scaled) -> Factors | None:
    pair = low_rank_form(op.operator)
    return None if pair is None else (op.scale * pair[0], pair[1])


@low_rank_form.register
def _sum(op: Sum) -> Factors | None:
    terms = [low_rank_form(term) for term in op.operators]
    known = [pair for pair in terms if pair is not None]
    return _side_by_side(known) if len(known) == len(terms) and _low(known, op) else None


@low_rank_form.register
def _product(op: Product) -> Factors | None:
    """Cut where the chain is narrowest: inside a factor of low rank, or between two factors."""
    factors = list(op.operators)
    pairs = {i: pair for i, f in enumerate(factors) if (pair := low_rank_form(f)) is not None}
    inside = min(pairs, key=lambda i: pairs[i][0].shape[1], default=None)
    between = min(range(1, len(factors)), key=lambda i: factors[i].shape[0], default=None)
    narrow = min(op.shape) if inside is None else pairs[inside][0].shape[1]
    if between is not None and factors[between].shape[0] < narrow:
        return _multiplied(factors[:between]), _multiplied(factors[between:])
    if inside is None or narrow >= min(op.shape):
        return None
    b, a = pairs[inside]
    for factor in reversed(factors[:inside]):
        b = _left(factor, b)
    for factor in factors[inside + 1 :]:
        a = _right(a, factor)
    return b, a


@low_rank_form.register
def _hadamard(op: Hadamard) -> Factors | None:
    p, q = low_rank_form(op.p), low_rank_form(op.q)
    if p is None or q is None or p[0].shape[1] * q[0].shape[1] >= min(op.shape):
        return None
    b = (p[0][:, :, None] * q[0][:, None, :]).flatten(1)
    a = (p[1][:, None, :] * q[1][None, :, :]).flatten(0, 1)
    return b, a


@low_rank_form.register
def _kron(op: Kron) -> Factors | None:
    p, q = _narrowest(op.p), _narrowest(op.q)
    if p[0].shape[1] * q[0].shape[1] >= min(op.shape):
        return None
    return torch.kron(p[0], q[0]), torch.kron(p[1], q[1])


@low_rank_form.register
def _transpose(op: Transpose) -> Factors | None:
    pair = low_rank_form(op.operator)
    return None if pair is None else (pair[1].mT, pair[0].mT)


@low_rank_form.register
def _block_rows(op: BlockRows) -> Factors | None:
    pairs = [_narrowest(block) for block in op.operators]
    if not _low(pairs, op):
        return None
    return torch.block_diag(*(b for b, _ in pairs)), torch.cat([a for _, a in pairs])


@low_rank_form.register
def _block_columns(op: BlockColumns) -> Factors | None:
    pairs = [_narrowest(block) for block in op.operators]
    if not _low(pairs, op):
        return None
    return torch.cat([b for b, _ in pairs], 1), torch.block_diag(*(a for _, a in pairs))


def _narrowest(op: Operator) -> Factors:
    """The form of `op`, or its matrix and an identity."""
    pair = low_rank_form(op)
    if pair is not None:
        return pair
    matrix = op.dense()
    eye = torch.eye(min(op.shape), dtype=matrix.dtype, device=matrix.device)
    return (matrix, eye) if op.shape[1] <= op.shape[0] else (eye, matrix)


def _left(factor: Operator, b: Tensor) -> Tensor:
    """W b, in the dtype of b: a half precision weight would round it."""
    if isinstance(factor, Base):
        return factor.dense().to(b.dtype) @ b
    product: Tensor = factor(b.mT)
    return product.mT


def _right(a: Tensor, factor: Operator) -> Tensor:
    """a W, in the dtype of a."""
    return a @ factor.dense().to(a.dtype) if isinstance(factor, Base) else adjoint(factor, a)


def _multiplied(factors: list[Operator]) -> Tensor:
    return factors[0].dense() if len(factors) == 1 else Product(*factors).dense()


def _side_by_side(pairs: list[Factors]) -> Factors:
    dtype = reduce(torch.promote_types, (b.dtype for b, _ in pairs))
    return (
        torch.cat([b.to(dtype) for b, _ in pairs], 1),
        torch.cat([a.to(dtype) for _, a in pairs]),
    )


def _low(pairs: list[Factors], op: Operator) -> bool:
    return sum(b.shape[1] for b, _ in pairs) < min(op.shape)
