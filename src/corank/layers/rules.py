"""Dispatch on an operator's class, in a form that torch.compile traces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ..operators.operator import Operator

#: Rules of one function by the exact class of its operator: operators are final. (A
#: functools.singledispatch asks the ABC machinery, which breaks a compiled graph.)
Rules = dict[type[Operator], Callable[..., Any]]
F = TypeVar("F", bound=Callable[..., Any])


def rule(table: Rules, kind: type[Operator]) -> Callable[[F], F]:
    """Decorator: the function is what `table` holds for operators of class `kind`."""

    def add(function: F) -> F:
        table[kind] = function
        return function

    return add
