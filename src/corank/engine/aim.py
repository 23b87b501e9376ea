"""Aiming a weight at wanted outputs, where its inputs are no longer the original's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..linalg import about_mean, add_ridge
from ..models import Site, read_bias
from ..operators import Dense
from ..rewrites import Unit

#: Relative ridge on the inputs' moment, whose inverse the least-squares weight needs.
RIDGE = 1e-4


def is_aimed(site: Site) -> bool:
    """Whether calibration has said what the site's outputs are to be."""
    return "wanted_cross" in site.stats


def aim(model: nn.Module, unit: Unit, centred: Sequence[bool]) -> Unit:
    """The unit with the least-squares weights for its wanted outputs, or the unit itself.

    For wanted outputs t, less the bias, and inputs x: W = E[t x^T] E[x x^T]^-1, of t and x about
    their means where the site is centred. Its truncation in the metric of E[x x^T] is then the
    best low-rank map from x to t, because the least-squares residual is orthogonal to x. Operators
    that an earlier rewrite left are not aimed: they would be one matrix again.
    """
    aimed = all(is_aimed(site) for site in unit.sites)
    if not aimed or not all(isinstance(op, Dense) for op in unit.ops):
        return unit
    ops = [
        Dense(_least_squares(model, site, op.dense().detach(), own))
        for site, op, own in zip(unit.sites, unit.ops, centred, strict=True)
    ]
    return Unit(unit.sites, ops)


def _least_squares(model: nn.Module, site: Site, weight: Tensor, centred: bool) -> Tensor:
    """The ridge draws towards the weight as it is, so where nothing was lost nothing changes."""
    cross, gram = (site.stats[name].double() for name in ("wanted_cross", "gram"))
    mean, bias = site.stats["mean"].double(), read_bias(model, site)
    if centred:
        cross = cross - torch.outer(site.stats["wanted_mean"].double(), mean)
        gram = about_mean(gram, mean)
    elif bias is not None:
        cross = cross - torch.outer(bias.detach().double(), mean)
    old = weight.double()
    moved = torch.linalg.solve(add_ridge(gram, RIDGE), cross - old @ gram, left=False)
    return (old + moved).to(torch.promote_types(weight.dtype, torch.float32))
