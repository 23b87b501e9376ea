"""Models that hold channels in the order of their importance, with fewer of them."""

from __future__ import annotations

import torch
from torch import nn

from ..models import find_sites, install_together, modules_and_mixers, read, read_biases
from ..operators import Operator
from ..rewrites import Biases, Unit, is_mixer, layout_of, silenced
from .plan import Plan
from .transaction import unchanged_on_error


@torch.no_grad()
def narrow(model: nn.Module, keep: float) -> Plan:
    """Keep only the most important of the channels that `model` has left, in place.

    keep: the fraction of each module's channels, in (0, 1], rounded down to what all heads can
        keep alike, and at least that.

    Returns what was done, of the units as they were. Raises ValueError for another fraction, and
    where no weight has channels to lose.
    """
    if isinstance(keep, bool) or not 0 < keep <= 1:
        raise ValueError(f"keep={keep} is outside (0, 1]: it is the fraction that stays")
    plan, shorter = Plan([], []), []
    for group in modules_and_mixers(find_sites(model)):
        unit = Unit(group, [read(model, site) for site in group])
        layout = layout_of(unit)
        kept = None if layout is None else layout.kept(unit)
        if layout is None or kept is None:
            continue
        size = max(1, int(keep * len(kept) / layout.step)) * layout.step
        plan.units.append(unit)
        plan.sizes.append(size)
        shorter.append(layout.shortened(unit, kept[:size]))
    if not plan.units:
        raise ValueError("no weight has sorted channels: compress the model by 'uniql' first")
    with unchanged_on_error(model, plan.sites):
        for unit, made in zip(plan.units, shorter, strict=True):
            for op, was in zip(made, unit.ops, strict=True):
                op.requires_grad_(any(p.requires_grad for p in was.parameters()))
            install_together(model, unit.sites, made, _biases(model, unit, made))
    return plan


def _biases(model: nn.Module, unit: Unit, made: list[Operator]) -> Biases:
    biases = read_biases(model, unit.sites)
    return silenced(Unit(unit.sites, made), biases) if is_mixer(unit) else [None] * len(biases)
