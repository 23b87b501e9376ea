"""What `torch.compile` of a step leaves as it is: the walk over parameters, and finding a basis."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_T = TypeVar("_T")


def untraced(f: Callable[_P, _T], recursive: bool = True) -> Callable[_P, _T]:
    """f, not compiled; nor what it calls, if `recursive`.

    Marked when first called: torch's mark loads the whole compiler.
    """
    marked: list[Callable[_P, _T]] = []

    @wraps(f)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if not marked:
            marked.append(torch.compiler.disable(f, recursive=recursive))
        return marked[0](*args, **kwargs)

    return call


def unrolled(f: Callable[_P, _T]) -> Callable[_P, _T]:
    """f, not compiled, but what it calls."""
    return untraced(f, recursive=False)
