"""Carrying a plan out: build the operators, then put them in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..calibration import Batches
from ..calibration.cascade import cascade
from ..models import Site, install, module_at, read
from ..operators import Operator
from ..registry import Cascade, Recipe
from ..rewrites import Unit
from .plan import Plan

Progress = Callable[[str, float], None]
Errors = dict[str, float]


class Built(NamedTuple):
    """A site's new operator, its new bias (None keeps the old one), and its relative error."""

    site: Site
    op: Operator
    bias: Tensor | None
    error: float


@torch.no_grad()
def rewrite_at_once(model: nn.Module, plan: Plan, recipe: Recipe, told: Progress) -> Errors:
    """Build every operator from the statistics at hand, then install them all.

    Returns each rewritten site's error in the recipe's metric, relative to the weight's own size.
    """
    built: list[Built] = []
    for i, (unit, size) in enumerate(zip(plan.units, plan.sizes, strict=True)):
        told("factorisation", i / len(plan.units))
        if size is not None:
            built += _build(model, unit, size, recipe)
    for site, op, bias, _ in built:
        install(model, site, op, bias)
    return {b.site.name: b.error for b in built}


@torch.no_grad()
def rewrite_in_cascade(
    model: nn.Module,
    plan: Plan,
    recipe: Recipe,
    targets: Cascade,
    inputs: Batches,
    told: Progress,
) -> Errors:
    """Go through the model in order; each part is fitted to what the parts before it now give."""
    errors: Errors = {}
    for sites in cascade(model, plan.sites, recipe.needs, inputs, targets=targets):
        told("factorisation", len(errors) / len(plan.sites))
        errors |= rewrite_at_once(model, plan.of(sites), recipe, lambda stage, fraction: None)
    return errors


def _build(model: nn.Module, unit: Unit, size: int, recipe: Recipe) -> list[Built]:
    built = []
    for site, old, new in zip(unit.sites, unit.ops, recipe.family.build(unit, size), strict=True):
        weight = site.pool.get("originals", {}).get(site.name, old).dense().detach().float()
        change = weight - new.dense().detach().float()
        metric = recipe.family.measure(site.stats)
        error = float(metric.loss(change) / metric.loss(weight).clamp_min(1e-30))
        bias = None
        if recipe.correct_bias:
            bias = _mean_change(site, change)
            before = getattr(module_at(model, site), "bias", None)
            bias = (bias if before is None else bias + before.detach()).to(old.dtype)
        trains = any(p.requires_grad for p in old.parameters())
        new.requires_grad_(trains)
        built.append(Built(site, new, bias, error))
    return built


def _mean_change(site: Site, change: Tensor) -> Tensor:
    """What a change of the weight does to the site's mean output."""
    if site.kind == "embedding":
        counts = site.stats["row_counts"].to(change)
        return counts @ change / counts.sum()
    return change @ site.stats["mean"].to(change)


def freeze_all_but(model: nn.Module, plan: Plan) -> None:
    """Leave only the sites that were rewritten trainable."""
    model.requires_grad_(False)
    for unit, size in zip(plan.units, plan.sizes, strict=True):
        if size is not None:
            for site in unit.sites:
                read(model, site).requires_grad_(True)
