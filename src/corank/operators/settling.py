"""Operators that train in one form and are stored in another."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from .operator import Operator


@runtime_checkable
class Unsettled(Protocol):
    """An operator whose leaves hold more than the matrix that it stands for, so that it trains."""

    def settled(self) -> Operator:
        """The same matrix, in its stored form: codes, or values and their places."""


def settle(op: Operator) -> Operator:
    """`op` with every `Unsettled` part, itself included, in its stored form, in place."""
    if isinstance(op, Unsettled):
        return op.settled()
    for module in op.modules():
        for name, child in module._modules.items():
            if isinstance(child, Unsettled):
                module._modules[name] = child.settled()
    return op


def is_settled(op: Operator) -> bool:
    """Whether `settle` would change nothing."""
    return not any(isinstance(part, Unsettled) for part in op.modules())
