"""Any optimiser over a model, by its key: torch's AdamW, and those of `corank.optim`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..errors import unknown
from ..optim.groups import sparing_vectors

Groups = list[dict[str, Any]]
_OWN = {"self", "params", "lr", "weight_decay"}  # not a user's to set by name


def optimizers() -> dict[str, Callable[..., Optimizer]]:
    """Key -> class or function: "adamw", and all of `corank.optim` under their methods' keys."""
    from .. import optim

    kinds = [kind for _, kind in inspect.getmembers(optim, inspect.isclass)]
    found = {getattr(kind, "key", None): kind for kind in kinds if issubclass(kind, Optimizer)}
    own = {key: kind for key, kind in found.items() if isinstance(key, str)}
    wired = {"adamw_8bit": optim.adamw_8bit, "shampoo": optim.shampoo}
    return {"adamw": torch.optim.AdamW, **own, **wired}


def find_optimizer(key: str, options: Iterable[str] = ()) -> Callable[..., Optimizer]:
    """The optimiser of that key, which has these options; ValueError with the nearest names."""
    known = optimizers()
    if key not in known:
        raise unknown("optimiser", key, known)
    parameters = inspect.signature(known[key]).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in options:
            if name not in parameters.keys() - _OWN:
                raise unknown(f"option of the optimiser {key!r}", name, parameters.keys() - _OWN)
    return known[key]


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
    build = find_optimizer(key, options or {})
    params: Any = groups
    if groups is None:
        own = build is not torch.optim.AdamW  # which alone does not take a model
        params = model if own else [p for p in model.parameters() if p.requires_grad]
    optimizer = build(params, lr=lr, weight_decay=weight_decay, **(options or {}))
    if groups is None:
        spare_vectors(optimizer)
    return optimizer


def spare_vectors(optimizer: Optimizer) -> None:
    """Move parameters of one dimension into groups of their own that do not decay."""
    for group in list(optimizer.param_groups):
        kept, *apart = sparing_vectors([group], group["weight_decay"])
        group.update(kept)
        for part in apart:
            optimizer.add_param_group(part)
