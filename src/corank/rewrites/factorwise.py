"""Operators of several matrices in few bits: each matrix in the metric of what it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import SiteError
from ..models import Site
from ..operators import (
    BlockDiagonal,
    BlockRows,
    Dense,
    LowRank,
    Operator,
    Polyadic,
    Product,
    RowSparse,
    Scaled,
    Sum,
    TensorTrain,
    stack_rows,
)
from ..quantizers import Quantizer
from .rewrite import Counts, Unit

#: What is known of z = R x from what calibration saw of x.
_FOLLOWS = frozenset({"gram", "mean", "square_mean"})

#: Matrices that are done, by their id.
_Done = dict[int, tuple[Tensor, Operator]]


def factorwise(quantizer: Quantizer, unit: Unit) -> list[Operator]:
    """Each operator of a unit in few bits: a matrix as a whole, a product matrix by matrix.

    Its matrices are every `Dense`, both factors of every `LowRank` (gate and mask folded into the
    right one) and every block of a `BlockDiagonal`, which reads a part of the input, within any
    `Product`, `Sum`, `BlockRows` and `Scaled`; the numbers of a `RowSparse`, where the quantiser
    takes such; and the cores of a `TensorTrain` and factors of a `Polyadic`, as if what they read
    were white.
    The rest stays as it is: diagonals, indices, and blocks and cores with rows so short that scales
    would take what codes spare. A product is gone through from its input on: what follows R reads
    z = R' x, R' being R in few bits, so its errors count in R' C R'^T for inputs of moment C. A
    matrix that occurs twice is quantised once, where it is met first.

    Raises SiteError where there is no matrix, or where the quantiser reads more of z than moments.
    """
    done: _Done = {}
    return [_whole(quantizer, op, s, done) for s, op in zip(unit.sites, unit.ops, strict=True)]


def only_matrix(op: Operator, site: Site) -> Tensor:
    """The matrix of a `Dense`, for what cannot go matrix by matrix. Raises SiteError for others."""
    if not isinstance(op, Dense):
        raise SiteError(
            site.where, f"a {type(op).__name__} stands there, and this method takes one matrix",
            "Quantise it by another method, or call corank.merge(model) first",
        )  # fmt: skip
    return op.weight.detach()


def count_factorwise(quantizer: Quantizer, unit: Unit) -> list[Counts]:
    """The numbers and bytes of `factorwise`, from shapes alone; what is shared, with the first."""
    seen: set[int] = set()
    return [_count(quantizer, op, seen) for op in unit.ops]


def _whole(quantizer: Quantizer, op: Operator, site: Site, done: _Done) -> Operator:
    if isinstance(op, Dense):
        return _matrix(quantizer, op, site, done)
    if unknown := quantizer.needs - _FOLLOWS:
        raise SiteError(
            site.where,
            f"it holds several matrices, and {', '.join(sorted(unknown))} of what lies between "
            "them is not known",
            "Quantise it by a method that reads moments, or call corank.merge(model) first",
        )
    if not _holds_a_matrix(op, quantizer):
        raise SiteError(
            site.where, "it holds no matrix of floats that could be quantised by itself",
            "Leave it out of the targets, or call corank.merge(model) first",
        )  # fmt: skip
    known = {k: v for k, v in site.stats.items() if k in _FOLLOWS}
    return _inside(quantizer, op, replace(site, stats=known), done)


def _inside(quantizer: Quantizer, op: Operator, site: Site, done: _Done) -> Operator:
    match op:
        case Dense():
            return _matrix(quantizer, op, site, done)
        case LowRank():
            whole = op.gate is None and op.mask is None
            pair = (op.b, op.a) if whole else op.factors()
            return _in_turn(quantizer, [Dense(part) for part in pair], site, done)
        case Product():
            return _in_turn(quantizer, op.operators, site, done)
        case Sum():
            return Sum(*(_inside(quantizer, term, site, done) for term in op.operators))
        case BlockRows():
            return BlockRows(*(_inside(quantizer, part, site, done) for part in op.operators))
        case Scaled():
            return Scaled(_inside(quantizer, op.operator, site, done), op.scale)
        case BlockDiagonal(blocks=Tensor()):
            return _blocks(quantizer, op, site, done)
        case TensorTrain():
            return TensorTrain(*_cores(quantizer, op, site, done), rows=op.rows, columns=op.columns)
        case Polyadic():
            return Polyadic(*_cores(quantizer, op, site, done))
        case RowSparse(values=Tensor() as values) if quantizer.rows is not None:
            if id(values) not in done:
                done[id(values)] = values, quantizer.rows(values.detach(), op.columns, site)
            return RowSparse(done[id(values)][1], op.columns, op.into)
    return op


def _in_turn(
    quantizer: Quantizer, factors: Sequence[Operator], site: Site, done: _Done
) -> Operator:
    made: list[Operator] = []
    for factor in reversed(factors):
        if made and quantizer.needs:
            site = replace(site, stats=behind(made[-1], site.stats))
        made.append(_inside(quantizer, factor, site, done))
    return Product(*reversed(made))


def behind(op: Operator, stats: Mapping[str, Tensor]) -> dict[str, Any]:
    """The statistics of z = R x, from those of x."""
    found: dict[str, Any] = {}
    if "mean" in stats:
        found["mean"] = op.dense().to(stats["mean"]) @ stats["mean"]
    if "gram" in stats:
        matrix = op.dense().to(stats["gram"])
        found["gram"] = matrix @ stats["gram"] @ matrix.mT
        found["square_mean"] = found["gram"].diagonal()
    return found


def _matrix(quantizer: Quantizer, op: Dense, site: Site, done: _Done) -> Operator:
    if id(op.weight) not in done:
        made = quantizer(op.weight.detach(), replace(site, shape=op.shape))
        done[id(op.weight)] = op.weight, made
    return done[id(op.weight)][1]


def _cores(
    quantizer: Quantizer, op: TensorTrain | Polyadic, site: Site, done: _Done
) -> list[Operator]:
    """What a core reads lies between the others, so all of it counts alike."""
    made: list[Operator] = list(op.operators)
    for i, core in enumerate(_rounded(quantizer, op)):
        if core is not None:
            ones = torch.ones(core.shape[1], dtype=torch.float64, device=core.device)
            white = {"gram": ones.diag(), "square_mean": ones, "mean": 0 * ones}
            stats = {name: white[name].to(of) for name, of in site.stats.items()}
            made[i] = _matrix(quantizer, core, replace(site, stats=stats), done)
    return made


def _blocks(quantizer: Quantizer, op: BlockDiagonal, site: Site, done: _Done) -> Operator:
    blocks = op.each()
    if not _pays(quantizer, blocks):
        return op
    if id(blocks) not in done:
        _, out, into = blocks.shape
        made: list[Operator] = []
        for i, block in enumerate(blocks.detach()):
            part = slice(i * into, (i + 1) * into)
            stats = {k: v[part, part] if k == "gram" else v[part] for k, v in site.stats.items()}
            made.append(quantizer(block, replace(site, shape=(out, into), stats=stats)))
        try:
            done[id(blocks)] = blocks, BlockDiagonal(stack_rows(made), len(made))
        except ValueError as error:
            raise SiteError(
                site.where, f"its blocks cannot be stored as a {type(made[0]).__name__}: {error}",
                "Quantise it by another method, or call corank.merge(model) first",
            ) from None  # fmt: skip
    return done[id(blocks)][1]


def _holds_a_matrix(op: Operator, quantizer: Quantizer) -> bool:
    match op:
        case Dense() | LowRank() | BlockDiagonal(blocks=Tensor()):
            return True
        case TensorTrain() | Polyadic():
            return any(_rounded(quantizer, op))
        case RowSparse(values=Tensor()):
            return quantizer.rows is not None
        case Product() | Sum() | BlockRows():
            return any(_holds_a_matrix(part, quantizer) for part in op.operators)
        case Scaled():
            return _holds_a_matrix(op.operator, quantizer)
    return False


def _count(quantizer: Quantizer, op: Operator, seen: set[int]) -> Counts:
    def matrix(part: Tensor) -> Counts:
        if id(part) in seen:
            return 0, 0
        seen.add(id(part))
        return _coded(quantizer, part)

    match op:
        case Dense():
            return matrix(op.weight)
        case LowRank():
            parts = [matrix(part) for part in (op.b, op.a)]
        case Product() | Sum() | BlockRows():
            parts = [_count(quantizer, part, seen) for part in op.operators]
        case Scaled():
            return _count(quantizer, op.operator, seen)
        case BlockDiagonal(blocks=Tensor()) if _pays(quantizer, op.each()):
            return matrix(op.each())
        case TensorTrain() | Polyadic():
            parts = [
                matrix(own.weight) if own else (core.numel(), core.bytes())
                for own, core in zip(_rounded(quantizer, op), op.operators, strict=True)
            ]
        case RowSparse(values=Tensor() as values) if quantizer.rows is not None:
            numel, size = matrix(values)
            return numel, size + op.columns.numel() * op.columns.element_size()
        case _:
            return op.numel(), op.bytes()
    return sum(numel for numel, _ in parts), sum(size for _, size in parts)


def _coded(quantizer: Quantizer, part: Tensor) -> Counts:
    """The numbers and bytes of a matrix in codes, or of blocks below each other."""
    out, into = part.flatten(0, -2).shape
    return quantizer.counts((out, into), part.dtype)


def _pays(quantizer: Quantizer, blocks: Tensor) -> bool:
    return _coded(quantizer, blocks)[1] < blocks.numel() * blocks.element_size()


def _rounded(quantizer: Quantizer, op: TensorTrain | Polyadic) -> list[Dense | None]:
    """The cores that are worth codes; None for the others."""
    return [
        core if isinstance(core, Dense) and _pays(quantizer, core.weight) else None
        for core in op.operators
    ]
