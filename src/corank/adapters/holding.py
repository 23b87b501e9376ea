"""All that methods train in a model, whether beside a weight or in its place."""

from __future__ import annotations

from torch import nn

from ..models import read
from ..operators import Adapted, Operator
from .active import active
from .factorized import Factorized, factorized
from .record import Adapter, adapted, adapters

Held = Adapter | Factorized


def everything(model: nn.Module) -> list[tuple[Held, dict[str, Operator]]]:
    """Every adapter and every group of factorised weights, with its operators by site."""
    weights = adapted(model)
    beside: list[tuple[Held, dict[str, Operator]]] = [
        (held, {path: w.adapter(name) for path, w in weights.items() if name in w.names})
        for name, held in adapters(model).items()
    ]
    return beside + [(group, _in_place(model, group)) for group in factorized(model).values()]


def acting(model: nn.Module) -> list[tuple[Held, dict[str, Operator]]]:
    """Those of `everything` that move: active adapters, and weights with leaves that train."""
    now = active(model)
    return [
        (held, operators)
        for held, operators in everything(model)
        if (held.name in now if isinstance(held, Adapter) else _train(operators))
    ]


def _in_place(model: nn.Module, group: Factorized) -> dict[str, Operator]:
    there = {name: read(model, site) for name, site in group.sites.items()}
    return {n: op.base if isinstance(op, Adapted) else op for n, op in there.items()}


def _train(operators: dict[str, Operator]) -> bool:
    return any(leaf.requires_grad for op in operators.values() for leaf in op.parameters())
