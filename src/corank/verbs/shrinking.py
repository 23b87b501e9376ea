"""What `corank.compress` and `corank.quantize` do with a recipe."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from time import perf_counter
from typing import Any

from torch import nn

from ..adapters.factorized import forget
from ..allocation import MEASURED
from ..calibration import Batches
from ..engine.plan import make_plan, plan_by_shape
from ..engine.rewriting import (
    freeze_all_but,
    rewrite_at_once,
    rewrite_in_cascade,
    settle_trained,
)
from ..engine.summary import describe_plan, describe_sites, model_sizes, total_sizes
from ..engine.transaction import unchanged_on_error
from ..healing import heal
from ..io import attach
from ..models import choose_sites, read, require_finite, require_sites, require_unquantised, survey
from ..registry import Healing, Recipe, find_method
from ..report import Report, versions
from .calibrating import calibrate, find_stored, read_data
from .deltas import as_fraction, open_delta, require_at_once
from .options import Options


def shrink(
    verb: str, model: nn.Module, method: str, params: dict[str, Any], options: Options
) -> Report:
    """Rewrite the targeted weights, in place, by a method of the area `verb`."""
    told = options.progress or (lambda stage, fraction: None)
    registered, rank = find_method(method, verb), options.rank
    if rank is not None and "rank" in registered.parameters:
        params, rank = params | {"rank": rank}, None
    recipe: Recipe = registered.recipe(params)
    if "rank" in params and options.keep is None and options.size is None:
        rank = recipe.rank
    recipe = replace(
        recipe,
        cascade=options.cascade or recipe.cascade,
        allocate=options.allocate or recipe.allocate,
    )
    every, left_out = survey(model, options.seed)
    sites = require_sites(choose_sites(every, left_out, options.targets), left_out)
    refused = {r.name: r.reason for r in left_out}
    seconds = {"calibration": 0.0, "factorisation": 0.0, "healing": 0.0}
    budget: dict[str, Any] = {"keep": options.keep, "size": options.size, "rank": rank}
    report = Report(
        verb, method,
        parameters=budget | params | {"seed": options.seed, "cascade": recipe.cascade,
                                      "allocate": recipe.allocate},
        refused=refused, seconds=seconds, versions=versions(),
    )  # fmt: skip
    budget["round_to"] = options.round_to
    before = model_sizes(model)
    amount = options.healing(own=2.0 if recipe.heal else 0.0)
    delta = None
    if recipe.delta:
        require_at_once(
            method, cascade=recipe.cascade,
            heal_minutes=amount.get("minutes"), heal_steps=amount.get("steps"),
            allocate=recipe.allocate if recipe.allocate in MEASURED else None,
        )  # fmt: skip
        if not options.dry_run:
            delta = open_delta(model, options.original, sites, method)
            report.notes += delta.notes(sites)
            sites = delta.changes.sites
        if options.size is not None:
            changes = delta.changes if delta else None
            budget |= {"keep": as_fraction(model, sites, changes, options.size), "size": None}
    groups = recipe.group(sites)
    served = {site.name for group in groups for site in group}
    left = [site for site in sites if site.name not in served]
    if left:
        report.notes.append(
            f"{len(left)} of {len(sites)} targeted weights are none that {method!r} rewrites: they "
            "stay as they are, and within the budget"
        )
        sites = [site for site in sites if site.name in served]
    healing = (recipe.heal or Healing()) if amount else None
    if options.dry_run:
        plan = plan_by_shape(model, groups, recipe, left=left, **budget)
        report.notes.append("dry run: sizes are the uniform allocation's; nothing was changed")
        report.sites = describe_plan(plan, recipe.family)
        report.totals = total_sizes(report.sites, before)
        return report
    for site in sites:
        require_finite(model, site)
        if verb == "quantize" or options.original is None:  # what repairs codes has an original
            require_unquantised(read(model, site), site)
        if options.original is not None and delta is None:
            site.pool.setdefault("originals", {})[site.name] = read(options.original, site)
    stored = find_stored(options)
    inputs = read_data(method, recipe, options, stored is not None, healing is not None)
    teacher = copy.deepcopy(model) if healing else None
    with unchanged_on_error(model, sites):
        started = perf_counter()
        told("calibration", 0.0)
        report.notes += calibrate(model, sites, recipe, inputs, options, stored)
        seconds["calibration"] = perf_counter() - started
        started = perf_counter()
        if delta is not None:
            delta.take_out()
        plan = make_plan(model, groups, recipe, inputs=inputs, left=left, **budget)
        if recipe.cascade is None or inputs is None:
            errors = rewrite_at_once(model, plan, recipe, told)
        else:
            errors = rewrite_in_cascade(model, plan, recipe, inputs, options.spill, told)
        if recipe.trains is not None:
            freeze_all_but(recipe.trains, model, plan)
        seconds["factorisation"] = perf_counter() - started
        if healing and teacher is not None:
            scales = recipe.trains is None
            heal_towards(model, teacher, inputs, amount, options, report, healing, scales=scales)
        settle_trained(model, plan)
        report.sites = describe_sites(model, plan, errors)
        after = model_sizes(model)
        if delta is not None:
            after = delta.put_beside(method, params, options.targets, options.seed)
    forget(model, [site.name for site in sites])
    attach(model)
    report.totals = total_sizes(report.sites, before, after)
    return report


def heal_towards(
    model: nn.Module, original: nn.Module, inputs: Batches | None, amount: Mapping[str, Any],
    options: Options, report: Report, healing: Healing | None = None, scales: bool = True,
) -> None:  # fmt: skip
    """Train for so many minutes or steps, if any, and say so in the report."""
    if not amount:
        return
    how = healing or Healing()
    healed = heal(
        model, original, inputs, **amount,
        features=how.distillation, output=how.output, seed=options.seed, channels=how.channels,
        perturbation=how.perturbation, epsilon=how.epsilon, scales=scales,
        progress=options.progress,
    )  # fmt: skip
    report.seconds["healing"] = healed.seconds
    report.sections["healing"] = {"losses": healed.losses}
