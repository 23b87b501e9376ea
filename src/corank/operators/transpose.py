from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from typing import Any, final

from torch import Tensor

from .cost import dense_flops
from .operator import Operator
from .skeleton import storable
from .through import apply_dense


@singledispatch
def transpose(op: Operator) -> Operator:
    """The operator of W.T, over the same leaves: a rule of its kind, else `Transpose(op)`."""
    return Transpose(op)


@singledispatch
def adjoint(op: Operator, x: Tensor) -> Tensor:  # (..., out) -> (..., in)
    """`x @ W`, by a rule of the operator's kind, else through its matrix."""
    return apply_dense(op, x, transposed=True)


def adjoint_rule(op: Operator) -> Callable[[Any, Tensor], Tensor] | None:
    """The rule by which `adjoint` multiplies without the matrix, or None where there is none."""
    rule = adjoint.dispatch(type(op))
    return None if rule is adjoint.dispatch(object) else rule


@storable
@final
class Transpose(Operator):
    """W.T of an operator. Prefer `transpose(op)`, which pushes the transposition inwards."""

    def __init__(self, operator: Operator) -> None:
        super().__init__()
        self.shape = (operator.shape[1], operator.shape[0])
        self.operator = operator
        # Looked up once: torch.compile does not trace a dispatch.
        self._adjoint = adjoint.dispatch(type(operator))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._adjoint(self.operator, x)
        return out

    def dense(self) -> Tensor:
        return self.operator.dense().mT

    def flops(self, tokens: int) -> int:
        return self.operator.flops(tokens)


@transpose.register
def _transpose(op: Transpose) -> Operator:
    return op.operator


@adjoint.register
def _adjoint(op: Transpose, x: Tensor) -> Tensor:
    out: Tensor = op.operator(x)
    return out


@dense_flops.register
def _dense_flops(op: Transpose) -> int:
    return dense_flops(op.operator)
