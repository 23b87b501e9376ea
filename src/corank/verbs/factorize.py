"""`corank.factorize`: train structured weights in the place of a model's dense ones."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

from torch import nn

from ..adapters.factorized import Factorized, free_name
from ..engine.building import without_collection
from ..engine.factorizing import (
    describe_factorized,
    factorize_sites,
    plan_factorized,
    require_unfactorized,
)
from ..engine.summary import model_sizes
from ..engine.transaction import unchanged_on_error
from ..io import attach
from ..models import choose_sites, in_layers, read, require_finite, survey
from ..registry import Factorization, find_factorization
from ..report import Report, versions


@without_collection
def factorize(
    model: nn.Module,
    method: str,
    *,
    targets: Any = "all-linear",
    layers: Sequence[int] | None = None,
    seed: int = 0,
    dry_run: bool = False,
    **params: Any,
) -> Report:
    """Replace the targeted weights of `model`, in place, by structured ones that train.

    The model is most often fresh from a configuration, its weights random; methods that start from
    the weights take a trained one as well. Biases, norms and weights that are not targeted go on
    training as they are. `corank.controller(model)` does what the method does while training.

    method: a key of `corank.methods()` of area "train", or one of area "optimize" that is about
        weights or layers; `params` are its own parameters.
    targets: as for `corank.compress`: "all-linear", "attention", "mlp", "all", name endings,
        "re:REGEX", or a dict of name -> this target's own parameters (None skips).
    layers: only these block indices.
    seed: of everything random; a start depends on neither the order of sites nor the device.
    dry_run: count only; needs no weights, so a model on the meta device will do.

    Returns a Report with, for each site, what trains and what is stored. On an error the model is
    as it was. Raises ValueError (SiteError) with the site and the remedy.
    """
    registered = find_factorization(method)
    recipe: Factorization = registered.recipe(params)
    every, left_out = survey(model, seed)
    sites = in_layers(choose_sites(every, left_out, targets), layers)
    recipes = {s.name: registered.recipe({**params, **s.overrides}) if s.overrides else recipe
               for s in sites}  # fmt: skip
    report = Report(
        "factorize", method,
        parameters=params | {"seed": seed},
        refused={r.name: r.reason for r in left_out},
        versions=versions(),
    )  # fmt: skip
    before = model_sizes(model)
    there = {site.name: read(model, site) for site in sites}
    require_unfactorized(model, sites, there)
    if dry_run:
        plan_factorized(report, sites, there, recipes, before)
        return report
    for site in sites:
        require_finite(model, site)
    held = Factorized(
        free_name(model, method), method, dict(params), seed,
        sites={site.name: site for site in sites}, recipe=recipe,
    )  # fmt: skip
    started = perf_counter()
    with unchanged_on_error(model, sites):
        made = factorize_sites(model, held, there, recipes)
    report.seconds["start"] = perf_counter() - started
    for site in sites:
        site.pool.clear()
    attach(model)
    chosen = list(held.sites.values())
    describe_factorized(report, chosen, there, made, before, model_sizes(model))
    return report
