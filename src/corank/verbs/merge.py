"""`corank.merge`: every operator back to a plain dense module."""

from __future__ import annotations

import torch
from torch import nn

from ..adapters import adapters, factorized
from ..engine.transaction import unchanged_on_error
from ..io import attach
from ..models import densify, is_rewritten, survey


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """Replace every operator of `model`, in place, by a plain module over its dense matrix.

    The function stays the same up to rounding in the weights' dtype. Returns the model.
    """
    sites = [site for site in survey(model)[0] if is_rewritten(model, site)]
    with unchanged_on_error(model, sites):
        for site in sites:
            densify(model, site)
    adapters(model).clear()
    factorized(model).clear()
    attach(model)
    return model
