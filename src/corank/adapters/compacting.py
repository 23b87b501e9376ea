"""Adapters and factorised weights with their dead ranks physically gone."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from ..control import cut
from .controller import Controller
from .holding import everything
from .record import adapted


@torch.no_grad()
def compact(
    model: nn.Module, optimizer: Optimizer | None = None, controller: Controller | None = None
) -> int:
    """Drop every rank that is masked or gated to zero from what trains in the model, in place.

    That is its adapters and its factorised weights.

    The function stays, and training goes on as if the ranks were still masked: the leaves are
    replaced in the optimiser's groups, its moments are cut along, and so is what the controller
    remembers. Give both if training is to go on. A rank gated to zero loses its chance to regrow.
    Returns how many ranks were dropped. Raises ValueError for an optimiser whose state does not
    follow its leaves' shapes.
    """
    trainings = {} if controller is None else {t.name: t for t in controller.trainings}
    found = [
        (operators, trainings[held.name].memory if held.name in trainings else {})
        for held, operators in everything(model)
    ]
    dropped = cut(found, optimizer)
    for weight in adapted(model).values():
        weight.refresh()
    return dropped
