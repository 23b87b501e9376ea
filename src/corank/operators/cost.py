"""What it costs to write an operator down."""

from __future__ import annotations

from functools import singledispatch

from .operator import Operator


@singledispatch
def dense_flops(op: Operator) -> int:
    """Floating point operations of `op.dense()`. Moving and filling memory is free.

    Without a rule of its own an operator is taken to multiply the identity.
    """
    return op.flops(op.shape[1])
