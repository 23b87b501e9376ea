from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn, final

import torch
from torch import Tensor

from .operator import Operator, parts, require_operators
from .skeleton import storable


@storable
@final
class RoutedRows(Operator):
    """Runs of rows, of which each input gets those that suit it: x -> scale * g(x) * W x.

    `operators` are the runs, (out / n, in) each, and `router` (n, in) scores them; the `top_k` best
    of an input are computed for it and its other outputs are zero. Not a linear map.

    It has no matrix, so `dense()` raises. Under torch.compile all runs are computed and masked.
    """

    linear = False
    operators: Sequence[Operator]

    def __init__(
        self, *operators: Operator, router: Operator, top_k: int, scale: float = 1.0
    ) -> None:
        super().__init__()
        require_operators((*operators, router), "RoutedRows")
        shapes = {op.shape for op in operators}
        into = operators[0].shape[1]
        if len(shapes) > 1 or router.shape != (len(operators), into):
            raise ValueError(
                f"RoutedRows needs runs of one shape and a router of ({len(operators)}, {into}), "
                f"got {sorted(shapes)} and {router.shape}"
            )
        if not 1 <= top_k <= len(operators):
            raise ValueError(f"RoutedRows: top_k={top_k} is outside 1 to {len(operators)}")
        self.shape = (len(operators) * operators[0].shape[0], into)
        self.operators, self.router = parts(operators), router
        self.top_k, self.scale = top_k, scale

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        best = self.router(rows).topk(self.top_k, -1).indices
        made = [
            self._run(op, rows, (best == number).any(-1))
            for number, op in enumerate(self.operators)
        ]
        return (torch.cat(made, -1) * self.scale).view(*x.shape[:-1], self.shape[0])

    def _run(self, op: Operator, rows: Tensor, mine: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            masked: Tensor = op(rows) * mine[:, None]
            return masked
        y: Tensor = op(rows[mine])
        return y.new_zeros(len(rows), y.shape[1]).index_copy(0, mine.nonzero()[:, 0], y)

    def dense(self) -> NoReturn:
        raise ValueError("rows that depend on the input are not those of one matrix")

    def flops(self, tokens: int) -> int:
        chosen = self.top_k * self.operators[0].flops(tokens)
        return self.router.flops(tokens) + chosen + tokens * self.shape[0]
