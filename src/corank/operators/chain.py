"""The product of a chain of operators as a matrix, associated in the order that costs least."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .cost import dense_flops
from .dense import Dense
from .low_rank import LowRank
from .operator import Operator
from .transpose import adjoint_rule


@dataclass(frozen=True)
class _Link:
    """An operator of the chain by its position, or one of a LowRank's two factors (`side`)."""

    shape: tuple[int, int]
    position: int
    side: int | None = None
    stored: bool = False
    adjoint: Callable[[Any, Tensor], Tensor] | None = None


@dataclass(frozen=True)
class _Best:
    flops: int
    cut: int = -1
    way: str = "leaf"


@dataclass(frozen=True)
class Chain:
    """How to multiply operators into a matrix. It holds none of them, so it copies freely."""

    links: tuple[_Link, ...]
    best: dict[tuple[int, int], _Best]  # (first link, last link) -> the cheapest way

    @property
    def flops(self) -> int:
        """Floating point operations of `multiply`."""
        return self.best[0, len(self.links) - 1].flops

    def multiply(
        self, operators: Sequence[Operator], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """The matrix of the operators' product, (out of the first, in of the last).

        Every factor that is written down becomes of this dtype and device, as those that hold no
        number, or refer to a narrower weight, are of others.
        """

        def evaluate(i: int, j: int) -> Tensor:
            first, last, step = self.links[i], self.links[j], self.best[i, j]
            if i == j:
                op = operators[first.position]
                factor = op.factors()[first.side or 0] if isinstance(op, LowRank) else op.dense()
                return factor.to(device, dtype)
            if step.way == "forward":
                rows: Tensor = operators[first.position](evaluate(i + 1, j).mT)
                return rows.mT
            left = evaluate(i, step.cut)
            if step.way == "adjoint" and last.adjoint is not None:
                return last.adjoint(operators[last.position], left)
            return left @ evaluate(step.cut + 1, j)

        return evaluate(0, len(self.links) - 1)


def plan(operators: Sequence[Operator]) -> Chain:
    """The cheapest order, by the classical dynamic programme over where to cut the chain.

    LowRanks are opened into their factors; a structured operator at the end of a part may be
    applied to the rest of it instead of being written down.
    """
    links = [link for place, op in enumerate(operators) for link in _open(op, place)]
    best: dict[tuple[int, int], _Best] = {}
    for i, link in enumerate(links):
        op = operators[link.position]
        flops = (
            op.folding_flops() * (link.side or 0) if isinstance(op, LowRank) else dense_flops(op)
        )
        best[i, i] = _Best(flops)
    for span in range(1, len(links)):
        for i in range(len(links) - span):
            j = i + span
            ways = [way for cut in range(i, j) for way in _ways(operators, links, best, i, cut, j)]
            best[i, j] = min(ways, key=lambda way: way.flops)
    return Chain(tuple(links), best)


def _open(op: Operator, place: int) -> list[_Link]:
    if isinstance(op, LowRank):
        left, right = (op.shape[0], op.rank), (op.rank, op.shape[1])
        return [_Link(left, place, 0, True), _Link(right, place, 1, True)]
    return [_Link(op.shape, place, None, isinstance(op, Dense), adjoint_rule(op))]


def _ways(
    operators: Sequence[Operator],
    links: list[_Link],
    best: dict[tuple[int, int], _Best],
    i: int,
    cut: int,
    j: int,
) -> list[_Best]:
    rows, inner, columns = links[i].shape[0], links[cut].shape[1], links[j].shape[1]
    left, right = best[i, cut].flops, best[cut + 1, j].flops
    ways = [_Best(left + right + 2 * rows * inner * columns, cut, "matmul")]
    if cut == i and not links[i].stored:
        apply = operators[links[i].position].flops(columns)
        ways.append(_Best(right + apply, cut, "forward"))
    if cut + 1 == j and not links[j].stored and links[j].adjoint is not None:
        apply = operators[links[j].position].flops(rows)
        ways.append(_Best(left + apply, cut, "adjoint"))
    return ways
