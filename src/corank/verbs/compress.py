"""`corank.compress`: make a model smaller in place, by any registered method."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import nn

from ..adapters.factorized import forget
from ..allocation import Allocator
from ..calibration import batches, collect, load_statistics, save_statistics
from ..engine.plan import make_plan, plan_by_shape
from ..engine.rewriting import freeze_all_but, rewrite_at_once, rewrite_in_cascade
from ..engine.summary import describe_plan, describe_sites, model_sizes, total_sizes
from ..engine.transaction import unchanged_on_error
from ..errors import DataError
from ..healing import heal
from ..io import attach
from ..models import choose_sites, read, require_finite, survey
from ..registry import Cascade, Healing, Recipe, find_method
from ..report import Report, versions

Progress = Callable[[str, float], None]


def compress(
    model: nn.Module,
    method: str,
    *,
    keep: float | None = None,
    size: str | None = None,
    rank: int | None = None,
    data: Any = None,
    tokenizer: Any = None,
    sequence_length: int = 256,
    count: int | None = None,
    batch_size: int = 8,
    loss: Callable[[nn.Module, Any], Any] | None = None,
    statistics: str | os.PathLike[str] | None = None,
    targets: Any = "all-linear",
    allocate: str | Allocator | None = None,
    round_to: int = 1,
    cascade: Cascade | None = None,
    spill: str | os.PathLike[str] | None = None,
    original: nn.Module | None = None,
    seed: int = 0,
    dry_run: bool = False,
    heal_minutes: float | None = None,
    progress: Progress | None = None,
    **params: Any,
) -> Report:
    """Rewrite the targeted weights of `model`, in place, so that they store less.

    method: a key of `corank.methods()` of area "compress"; `params` are its own parameters.
    keep: the fraction, in (0, 1], of the targeted sites' parameters that stays; or
    size: of the whole model, "3.2GB" (bytes) or "1.1B" (parameters); or
    rank: the same rank for every site. Exactly one of the three. Budgets are met from below.
    data, tokenizer, sequence_length (tokens), count (samples), batch_size: calibration inputs, in
        any form that `corank.calibration.batches` reads; needed by methods with statistics.
    loss: `(model, batch) -> scalar` for methods that need gradients; default: the model's own.
    statistics: a file of what calibration gathers: read where it exists, else written, so that
        later calls on the same model save the pass over the data. It must hold what the method
        needs; it does not know which data it is of.
    targets: which weights: "all-linear", "attention", "mlp", "all", a list of name endings,
        "re:REGEX", or a dict of name -> overrides (None skips).
    allocate: how the budget is spread over the sites, a key of `corank.allocation.ALLOCATORS` or a
        callable; default: the method's own.
    round_to: make every rank a multiple of this; a site whose factors would not pay stays dense.
    cascade: "original" or "compressed": take each block's inputs from the model compressed so
        far, and fit the original model's outputs, or the site's own on those inputs.
    spill: a folder for what a cascade would else hold in memory: the blocks' inputs.
    original: the model before an earlier compression, for methods that compensate one.
    heal_minutes: train the result towards the model as it was, for so long, on the same data; a
        method that heals by itself does it for two minutes, 0 leaves it out.
    seed: of everything random; results depend on neither the order of sites nor the device.
    dry_run: plan only: nothing is read but shapes, nothing is changed.
    progress: called with (stage, fraction done).

    Returns a Report of every site, the sizes reached and the time spent. On an error the model is
    as it was. Raises ValueError (SiteError, DataError) with the site and the remedy.
    """
    told = progress or (lambda stage, fraction: None)
    registered = find_method(method, "compress")
    recipe: Recipe = registered.recipe(params)
    recipe = replace(recipe, cascade=cascade or recipe.cascade)
    every, left_out = survey(model, seed)
    sites = choose_sites(every, left_out, targets)
    refused = {r.name: r.reason for r in left_out}
    seconds = {"calibration": 0.0, "factorisation": 0.0, "healing": 0.0}
    report = Report(
        "compress", method,
        parameters=params | {"keep": keep, "size": size, "rank": rank, "seed": seed,
                             "allocate": allocate or recipe.allocate, "cascade": recipe.cascade},
        refused=refused, seconds=seconds, versions=versions(),
    )  # fmt: skip
    groups, before = recipe.group(sites), model_sizes(model)
    minutes = heal_minutes if heal_minutes is not None else 2.0 if recipe.heal else 0.0
    healing = (recipe.heal or Healing()) if minutes > 0 else None
    budget: dict[str, Any] = {"keep": keep, "size": size, "rank": rank, "round_to": round_to}
    if dry_run:
        plan = plan_by_shape(model, groups, recipe, **budget)
        report.notes.append("dry run: sizes are the uniform allocation's; nothing was changed")
        report.sites = describe_plan(plan)
        report.totals = total_sizes(report.sites, before)
        return report
    for site in sites:
        require_finite(model, site)
        if original is not None:
            site.pool.setdefault("originals", {})[site.name] = read(original, site)
    stored = statistics if statistics is not None and Path(statistics).is_file() else None
    inputs = None
    if data is not None:
        inputs = batches(
            data, tokenizer=tokenizer, sequence_length=sequence_length, count=count,
            batch_size=batch_size,
        )  # fmt: skip
    elif (recipe.family.needs and stored is None) or recipe.cascade or healing:
        wanted = ", ".join(sorted(recipe.family.needs)) or "to run the model on"
        raise DataError(f"{method!r} needs calibration data ({wanted}): give data=")
    teacher = copy.deepcopy(model) if healing else None
    with unchanged_on_error(model, sites):
        started = perf_counter()
        told("calibration", 0.0)
        if stored is not None and recipe.family.needs:
            load_statistics(model, sites, stored, recipe.family.needs)
        elif inputs is not None and recipe.family.needs:
            report.notes += collect(model, sites, recipe.family.needs, inputs, loss=loss)
            if statistics is not None:
                save_statistics(model, sites, statistics)
        elif inputs is not None:
            report.notes += inputs.notes
        seconds["calibration"] = perf_counter() - started
        started = perf_counter()
        plan = make_plan(model, groups, recipe, allocate=allocate, inputs=inputs, **budget)
        if recipe.cascade is None or inputs is None:
            errors = rewrite_at_once(model, plan, recipe, told)
        else:
            errors = rewrite_in_cascade(model, plan, recipe, inputs, spill, told)
        if recipe.train_rewritten:
            freeze_all_but(model, plan)
        seconds["factorisation"] = perf_counter() - started
        if healing and teacher is not None:
            healed = heal(
                model, teacher, inputs, minutes=minutes,
                features=healing.distillation, output=healing.output, seed=seed,
                perturbation=healing.perturbation, epsilon=healing.epsilon, progress=told,
            )  # fmt: skip
            seconds["healing"] = healed.seconds
            report.sections["healing"] = {"losses": healed.losses}
    forget(model, [site.name for site in sites])
    attach(model)
    report.sites = describe_sites(model, plan, errors)
    report.totals = total_sizes(report.sites, before, model_sizes(model))
    return report
