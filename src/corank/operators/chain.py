"""The product of a chain of operators as a matrix, associated in the order that costs least."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from .cost import dense_flops
from .dense import Dense
from .low_rank import LowRank
from .operator import Operator
from .transpose import adjoint_rule


@dataclass(frozen=True)
class _Link:
    """A matrix of the chain that is stored (or cheap to fold), or an operator to apply."""

    shape: tuple[int, int]
    operator: Operator | None = None
    matrix: Callable[[], Tensor] | None = None
    adjoint: Callable[[Operator, Tensor], Tensor] | None = None


@dataclass(frozen=True)
class _Best:
    flops: int
    cut: int = -1
    way: str = "leaf"


_Plan = dict[tuple[int, int], _Best]  # (first link, last link) -> the cheapest way


def multiply(operators: Sequence[Operator]) -> Tensor:
    """The matrix of the operators' product, (out of the first, in of the last)."""
    links = _links(operators)
    return _evaluate(links, _plan(links), 0, len(links) - 1)


def associate(operators: Sequence[Operator]) -> int:
    """Floating point operations of `multiply`, by the classical dynamic programme over cuts."""
    links = _links(operators)
    return _plan(links)[0, len(links) - 1].flops


def _links(operators: Sequence[Operator]) -> list[_Link]:
    links: list[_Link] = []
    for op in operators:
        if isinstance(op, Dense):
            links.append(_Link(op.shape, matrix=op.dense))
        elif isinstance(op, LowRank):
            halves = ((op.shape[0], op.rank), 0), ((op.rank, op.shape[1]), 1)
            links += [_Link(shape, matrix=partial(_factor, op, side)) for shape, side in halves]
        else:
            links.append(_Link(op.shape, operator=op, adjoint=adjoint_rule(op)))
    return links


def _factor(op: LowRank, side: int) -> Tensor:
    return op.factors()[side]


def _plan(links: list[_Link]) -> _Plan:
    best: _Plan = {}
    for i, link in enumerate(links):
        best[i, i] = _Best(0 if link.operator is None else dense_flops(link.operator))
    for span in range(1, len(links)):
        for i in range(len(links) - span):
            j = i + span
            ways = [way for cut in range(i, j) for way in _ways(links, best, i, cut, j)]
            best[i, j] = min(ways, key=lambda way: way.flops)
    return best


def _ways(links: list[_Link], best: _Plan, i: int, cut: int, j: int) -> list[_Best]:
    rows, inner, columns = links[i].shape[0], links[cut].shape[1], links[j].shape[1]
    left, right = best[i, cut].flops, best[cut + 1, j].flops
    ways = [_Best(left + right + 2 * rows * inner * columns, cut, "matmul")]
    first, last = links[i].operator, links[j].operator
    if cut == i and first is not None:
        ways.append(_Best(right + first.flops(columns), cut, "forward"))
    if cut + 1 == j and last is not None and links[j].adjoint is not None:
        ways.append(_Best(left + last.flops(rows), cut, "adjoint"))
    return ways


def _evaluate(links: list[_Link], best: _Plan, i: int, j: int) -> Tensor:
    first, last, step = links[i], links[j], best[i, j]
    if i == j and first.matrix is not None:
        return first.matrix()
    if first.operator is not None and i == j:
        return first.operator.dense()
    if first.operator is not None and step.way == "forward":
        out: Tensor = first.operator(_evaluate(links, best, i + 1, j).mT)
        return out.mT
    left = _evaluate(links, best, i, step.cut)
    if last.operator is not None and last.adjoint is not None and step.way == "adjoint":
        return last.adjoint(last.operator, left)
    return left @ _evaluate(links, best, step.cut + 1, j)
