"""Folding an adapter that was trained on a quantiser's grid into the codes themselves."""

from __future__ import annotations

import torch
from torch import nn

from ..adapters import delete
from ..adapters.record import adapted, find_adapter
from ..errors import SiteError
from ..models import install
from ..operators import OnGrid, quantised


@torch.no_grad()
def merge_on_grid(model: nn.Module, name: str = "default") -> None:
    """Replace each weight by the codes that adapter `name` ("sqft" with on_grid) has reached.

    The weights stay quantised, with the scales and zeros they have, and compute what the adapter
    did; it is gone afterwards. Raises SiteError where the adapter is off the grid, or other
    adapters stand beside it.
    """
    held = find_adapter(model, name)
    merged = {}
    for path, weight in adapted(model).items():
        if name not in weight.names:
            continue
        op = weight.adapter(name)
        if not isinstance(op, OnGrid):
            raise SiteError(
                held.sites[path].where,
                "its adapter is not on the grid of its codes, so merging would round",
                "Adapt with sqft and on_grid=True, or merge into a dense weight.",
            )
        if len(weight.names) > 1:
            raise SiteError(
                held.sites[path].where,
                "other adapters stand beside the weight that would change",
                "Delete them first.",
            )
        merged[path] = quantised(op)
    delete(model, name)
    for path, op in merged.items():
        install(model, held.sites[path], op)
