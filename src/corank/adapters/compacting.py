"""Adapters with their dead ranks physically gone."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from ..control import cut
from .controller import Controller
from .record import adapted, adapters


@torch.no_grad()
def compact(
    model: nn.Module, optimizer: Optimizer | None = None, controller: Controller | None = None
) -> int:
    """Drop every rank that is masked or gated to zero from the model's adapters, in place.

    The function stays, and training goes on as if the ranks were still masked: the leaves are
    replaced in the optimiser's groups, its moments are cut along, and so is what the controller
    remembers. Give both if training is to go on. A rank gated to zero loses its chance to regrow.
    Returns how many ranks were dropped. Raises ValueError for an optimiser whose state does not
    follow its leaves' shapes.
    """
    trainings = {} if controller is None else {t.name: t for t in controller.trainings}
    weights = adapted(model)
    held = [
        (
            {path: w.adapter(name) for path, w in weights.items() if name in w.names},
            trainings[name].memory if name in trainings else {},
        )
        for name in adapters(model)
    ]
    dropped = cut(held, optimizer)
    for weight in weights.values():
        weight.refresh()
    return dropped
