"""Classes of optimisers from functions that make transforms."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ..errors import unknown
from .stepping import OPTIONS, LowRankOptimizer
from .transform import Transform

_COMMON = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "seed": 0}


def optimizer(
    name: str, recipe: Callable[..., Transform], key: str | None = None
) -> type[LowRankOptimizer]:
    """A class of optimisers from a function that makes a transform; its parameters are options.

    key: of the registered method, where it is not the function's name.
    """
    parameters = inspect.signature(recipe).parameters
    own = {k: p.default for k, p in parameters.items()}
    usual = _COMMON | {k: v for k, v in own.items() if k in _COMMON}
    options = usual | own | OPTIONS

    def __init__(self: Any, params: Any, lr: float = 1e-3, **chosen: Any) -> None:
        for key in chosen:
            if key not in options:
                raise unknown(f"option of {name}", key, options)
        LowRankOptimizer.__init__(self, params, options | {"lr": lr} | chosen)

    keyword, either = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    shown = [inspect.Parameter(k, either) for k in ("self", "params")]
    shown.append(inspect.Parameter("lr", either, default=1e-3))
    shown += [inspect.Parameter(k, keyword, default=v) for k, v in options.items()]
    __init__.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    about = f"{inspect.getdoc(recipe)}\n\n{inspect.getdoc(LowRankOptimizer)}"
    body = {
        "__init__": __init__,
        "__doc__": about,
        "__module__": recipe.__module__,
        "key": key or recipe.__name__,
        "transform": staticmethod(recipe),
    }
    return type(name, (LowRankOptimizer,), body)
