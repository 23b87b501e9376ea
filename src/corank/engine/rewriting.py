"""Carrying a plan out: build the operators, then put them in place."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..calibration import Batches, collect
from ..calibration.cascade import cascade
from ..calibration.statistics import LOSS_NEEDS
from ..errors import SiteError
from ..models import (
    Site,
    blocks,
    find_norms,
    install,
    put_convolved_bias,
    read,
    read_bias,
    read_biases,
)
from ..operators import (
    LearnedRounding,
    LowRank,
    Operator,
    Quantised,
    VectorQuantised,
    is_settled,
    settle,
)
from ..registry import Recipe, Trains
from ..rewrites import Family, Size, Unit
from .aim import aim, is_aimed
from .plan import Plan
from .ranks import build_each

Progress = Callable[[str, float], None]
Errors = dict[str, float]


class Fitted(NamedTuple):
    """What goes with a site's new operator: new biases (None keeps the old ones), and its error."""

    site: str
    bias: Tensor | None
    error: float
    convolved: Tensor | None = None  #: of the convolution that follows it


@torch.no_grad()
def rewrite_at_once(model: nn.Module, plan: Plan, recipe: Recipe, told: Progress) -> Errors:
    """Build every operator from the statistics at hand, then install them all.

    Returns each rewritten site's error in the recipe's metric, relative to the weight's own size.
    """

    def make(step: int) -> list[tuple[Operator, Fitted]]:
        told("factorisation", step / len(plan.units))
        return _build(model, plan.units[step], plan.sizes[step], recipe.family)

    sites, errors = {site.name: site for site in plan.sites}, {}
    for made in build_each(range(len(plan.units)), make):
        for op, fitted in made:
            install(model, sites[fitted.site], op, fitted.bias)
            if fitted.convolved is not None:
                put_convolved_bias(model, sites[fitted.site], fitted.convolved)
            errors[fitted.site] = fitted.error
    return errors


@torch.no_grad()
def rewrite_in_cascade(
    model: nn.Module,
    plan: Plan,
    recipe: Recipe,
    inputs: Batches,
    spill: str | os.PathLike[str] | None,
    told: Progress,
) -> Errors:
    """Go through the blocks in order; each part is fitted to what the parts before it now give.

    A part is a set of sites that read one input, or a block where sites are rewritten together.
    Sites outside the blocks come last, on the inputs that they then have.
    """
    errors: Errors = {}
    aiming = {"mean", "gram"} if recipe.cascade == "original" else {"mean"}
    needs = (recipe.needs | aiming) - LOSS_NEEDS
    prefixes = tuple(f"{name}." for name, _ in blocks(model))
    inside = [site for site in plan.sites if site.name.startswith(prefixes)]
    together = any(len(unit.sites) > 1 for unit in plan.units)
    outside = [site for site in plan.sites if not site.name.startswith(prefixes)]
    stages = cascade(
        model,
        inside,
        needs,
        inputs,
        targets=recipe.cascade or "compressed",
        granularity="block" if together else "input",
        spill=spill,
    )
    for sites in stages if inside else ():
        told("factorisation", len(errors) / len(plan.sites))
        errors |= rewrite_at_once(model, plan.of(sites), recipe, lambda stage, fraction: None)
    if outside:
        collect(model, outside, needs, inputs)
        errors |= rewrite_at_once(model, plan.of(outside), recipe, lambda stage, fraction: None)
    return errors


def _build(
    model: nn.Module, unit: Unit, size: Size, family: Family
) -> list[tuple[Operator, Fitted]]:
    trains = [any(p.requires_grad for p in op.parameters()) for op in unit.ops]
    centred = [  # what is left whole is given no bias
        family.of(site).measure.centred and (size is not None or site.bias) for site in unit.sites
    ]
    aimed = aim(model, unit, centred)
    if size is None and aimed is unit:
        return []
    new = list(aimed.ops) if size is None else family.build(aimed, size)
    biases = read_biases(model, unit.sites)
    joint = None if size is None else family.jointly(aimed, new, biases)
    built = []
    for i, (site, was, old, op, flag) in enumerate(
        zip(unit.sites, unit.ops, aimed.ops, new, trains, strict=True)
    ):
        measure = family.of(site).measure
        weight = site.pool.get("originals", {}).get(site.name, old).dense().detach().float()
        metric, change = measure(site.stats), weight - op.dense().detach().float()
        error = float(metric.loss(change) / metric.loss(weight).clamp_min(1e-30))
        bias = _bias(model, site, op, change).to(was.dtype) if centred[i] else None
        if joint is not None:
            bias, error = joint[0][i], joint[1]
        if not math.isfinite(error):
            raise SiteError(
                site.where,
                f"its values up to {float(weight.abs().max()):.3g}, those of its inputs, or what "
                f"the method makes of them leave the range of {weight.dtype}",
                "Rescale the weight, or leave it out of the targets",
            )
        convolved = joint[0][-1] if joint is not None and site.mixer is not None else None
        op = op.requires_grad_(flag) if aimed is unit else op.to(was.dtype).requires_grad_(flag)
        for part in op.modules():
            if isinstance(part, (Quantised, VectorQuantised)):
                part.requires_grad_(False)  # what decodes codes does not train without them
        built.append((op, Fitted(site.name, bias, error, convolved)))
    return built


def _bias(model: nn.Module, site: Site, op: Operator, change: Tensor) -> Tensor:
    """The bias that keeps the site's mean output what it is to be."""
    if is_aimed(site):
        return site.stats["wanted_mean"].to(change) - op.dense().to(change) @ site.stats["mean"].to(
            change
        )
    if site.kind == "embedding":
        counts = site.stats["row_counts"].to(change)
        moved = counts @ change / counts.sum()
    else:
        moved = change @ site.stats["mean"].to(change)
    before = read_bias(model, site)
    return moved if before is None else moved + before.detach().to(moved)


def settle_trained(model: nn.Module, plan: Plan) -> None:
    """Put operators that could have trained in another form into their stored one."""
    for site in plan.sites:
        op = read(model, site)
        if not is_settled(op):
            install(model, site, settle(op))


def freeze_all_but(chosen: Trains, model: nn.Module, plan: Plan) -> None:
    """Leave only the low-rank factors of the sites that were rewritten trainable, only the norms,
    or only what decides how the sites' codes are rounded."""
    model.requires_grad_(False)
    if chosen == "norms":
        if not (norms := find_norms(model)):
            raise ValueError("the method tunes norms, and this model has none: use another one")
        for norm in norms:
            norm.requires_grad_(True)
        return
    for unit, size in zip(plan.units, plan.sizes, strict=True):
        if size is not None:
            for site in unit.sites:
                for part in read(model, site).modules():
                    if chosen == "factors" and isinstance(part, LowRank):
                        part.requires_grad_(True)
                    if chosen == "rounding" and isinstance(part, LearnedRounding):
                        part.train_rounding()
