"""Any optimiser over a model, by its key: torch's AdamW, and those of `corank.optim`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..errors import unknown
from ..optim import LowRankOptimizer
from ..optim import groups as projected_groups

Groups = list[dict[str, Any]]
_OWN = {"self", "params", "lr", "weight_decay"}  # not a user's to set by name


def optimizer_classes() -> dict[str, type[Optimizer]]:
    """Key -> class: "adamw", and every optimiser of `corank.optim` under its method's key."""
    from .. import optim

    kinds = [kind for _, kind in inspect.getmembers(optim, inspect.isclass)]
    found = {getattr(kind, "key", None): kind for kind in kinds if issubclass(kind, Optimizer)}
    own = {key: kind for key, kind in found.items() if isinstance(key, str)}
    return {"adamw": torch.optim.AdamW, **own}


def find_optimizer(key: str, options: Iterable[str] = ()) -> type[Optimizer]:
    """The class of that key, which has these options; ValueError with the nearest names."""
    classes = optimizer_classes()
    if key not in classes:
        raise unknown("optimiser", key, classes)
    known = inspect.signature(classes[key].__init__).parameters.keys() - _OWN
    for name in options:
        if name not in known:
            raise unknown(f"option of the optimiser {key!r}", name, known)
    return classes[key]


def build_optimizer(
    model: nn.Module,
    key: str = "adamw",
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    options: dict[str, Any] | None = None,
    groups: Groups | None = None,
) -> Optimizer:
    """An optimiser of what trains in `model`.

    groups: parameter groups to take; without them a low-rank optimiser projects the linear layers
        (`corank.optim.groups`), and vectors such as biases and norms do not decay.
    options: of the optimiser itself, such as rank.

    Raises ValueError with the nearest names for an unknown key or option.
    """
    kind = find_optimizer(key, options or {})
    if groups is None:
        made = projected_groups(model) if issubclass(kind, LowRankOptimizer) else _all(model)
        groups = [part for group in made for part in _without_decay_of_vectors(group)]
    build: Any = kind
    optimizer: Optimizer = build(groups, lr=lr, weight_decay=weight_decay, **(options or {}))
    return optimizer


def _all(model: nn.Module) -> Groups:
    return [{"params": [p for p in model.parameters() if p.requires_grad]}]


def _without_decay_of_vectors(group: dict[str, Any]) -> Groups:
    matrices = [p for p in group["params"] if p.ndim > 1]
    vectors = [p for p in group["params"] if p.ndim <= 1]
    parts = [group | {"params": matrices}, group | {"params": vectors, "weight_decay": 0.0}]
    return [part for part in parts if part["params"]]
