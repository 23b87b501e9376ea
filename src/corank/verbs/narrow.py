"""`corank.narrow`: from a model with sorted channels to a smaller one, without data."""

from __future__ import annotations

import torch
from torch import nn

from ..engine.plan import Plan
from ..engine.summary import describe_sites, model_sizes, total_sizes
from ..engine.transaction import unchanged_on_error
from ..io import attach
from ..models import find_sites, install, modules, read
from ..report import Report, versions
from ..rewrites import Unit, layout_of


@torch.no_grad()
def narrow(model: nn.Module, keep: float) -> Report:
    """Keep only the most important of the channels that `model` has left, in place.

    For models compressed by a method that stores channels in the order of their importance, as
    "uniql" does: what is left is what the method would have kept at that size, so one file serves
    every smaller size. Other weights stay as they are.

    keep: the fraction of each module's channels, in (0, 1], rounded down to what all heads can
        keep alike, and at least that.

    Raises ValueError for another fraction, and where no weight has channels to lose.
    """
    if isinstance(keep, bool) or not 0 < keep <= 1:
        raise ValueError(f"keep={keep} is outside (0, 1]: it is the fraction that stays")
    plan, shorter, before = Plan([], []), [], model_sizes(model)
    for group in modules(find_sites(model)):
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
            for site, op, was in zip(unit.sites, made, unit.ops, strict=True):
                trains = any(p.requires_grad for p in was.parameters())
                install(model, site, op.requires_grad_(trains))
    attach(model)
    report = Report("narrow", "", parameters={"keep": keep}, versions=versions())
    report.sites = describe_sites(model, plan)
    report.totals = total_sizes(report.sites, before, model_sizes(model))
    return report
