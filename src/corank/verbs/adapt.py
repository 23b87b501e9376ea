"""`corank.adapt`: put trainable adapters beside a model's weights, by any registered method."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import nn

from ..adapters.record import Adapter, adapters
from ..calibration import batches, collect, load_statistics, save_statistics
from ..calibration.inputs import Watch
from ..engine.adapting import add_adapter, count_plan, describe_adapted, note_earlier
from ..engine.building import without_collection
from ..engine.summary import model_sizes
from ..engine.transaction import unchanged_on_error
from ..errors import DataError
from ..io import attach
from ..models import Site, choose_sites, in_layers, read, require_finite_leaves, survey
from ..operators import Adapted
from ..registry import Adaptation, find_method
from ..report import Report, versions


@without_collection
def adapt(
    model: nn.Module,
    method: str,
    *,
    targets: Any = "all-linear",
    layers: Sequence[int] | None = None,
    name: str = "default",
    modules_to_save: Sequence[str] = (),
    data: Any = None,
    tokenizer: Any = None,
    sequence_length: int = 256,
    count: int | None = None,
    batch_size: int = 8,
    loss: Callable[[nn.Module, Any], Any] | None = None,
    statistics: str | os.PathLike[str] | None = None,
    seed: int = 0,
    dry_run: bool = False,
    **params: Any,
) -> Report:
    """Put an adapter beside the targeted weights of `model`, in place; only its leaves train.

    method: a key of `corank.methods()` of area "adapt"; `params` are its own parameters.
    targets: as for `corank.compress`: "all-linear", "attention", "mlp", "all", name endings,
        "re:REGEX", or a dict of name -> this target's own parameters (None skips).
    layers: only these block indices.
    name: of the adapter. A model can carry several: the new one acts and trains, the others are
        switched off until `corank.adapters.activate` combines them.
    modules_to_save: endings of module names that train in full beside the adapter (a new head).
    data, tokenizer, sequence_length, count, batch_size, loss, statistics: calibration, for
        methods that start from statistics; as for `corank.compress`.
    seed: of everything random; a start depends on neither the order of sites nor the device.
    dry_run: count only; needs no weights, so a model on the meta device will do.

    The weights themselves never change. Returns a Report with, for each site, what trains and what
    is stored. On an error the model is as it was. Raises ValueError (SiteError, DataError).
    """
    registered = find_method(method, "adapt")
    recipe: Adaptation = registered.recipe(params)
    every, left_out = survey(model, seed, foreign=True)
    sites = in_layers(choose_sites(every, left_out, targets), layers)
    note_earlier(model, sites)
    recipes = {s.name: registered.recipe({**params, **s.overrides}) if s.overrides else recipe
               for s in sites}  # fmt: skip
    seconds = {"calibration": 0.0, "start": 0.0}
    report = Report(
        "adapt", method,
        parameters=params | {"name": name, "seed": seed},
        refused={r.name: r.reason for r in left_out},
        seconds=seconds, versions=versions(),
    )  # fmt: skip
    before = model_sizes(model)
    if dry_run:
        count_plan(report, model, sites, recipes)
        report.totals |= {f"model_{unit}_before": n for unit, n in before.items()}
        report.sections["adapter"] = dict(report.totals)
        return report
    if name in adapters(model):
        raise ValueError(
            f"the model already carries an adapter {name!r}: give name=, or delete it first"
        )
    there = {site.name: read(model, site) for site in sites}
    for site in sites:
        require_finite_leaves(there[site.name], site)
    needs = frozenset[str]().union(*(r.rewrite.needs | r.needs for r in recipes.values()))
    saved = _named_modules(model, modules_to_save, {site.path for site in sites})
    with unchanged_on_error(model, sites):
        if needs:
            started = perf_counter()
            _calibrate(
                model, method, recipes, sites, needs, data, loss, statistics, report,
                tokenizer=tokenizer, sequence_length=sequence_length, count=count,
                batch_size=batch_size,
            )  # fmt: skip
            seconds["calibration"] = perf_counter() - started
        started = perf_counter()
        held = Adapter(
            name, method, dict(params), targets, seed,
            sites={site.name: site for site in sites},
            recipe=recipe,
            also=tuple(saved),
        )  # fmt: skip
        made = add_adapter(model, held, there, recipes)
        chosen = list(held.sites.values())
        seconds["start"] = perf_counter() - started
    for site in sites:
        site.stats.clear()
        site.pool.clear()
    attach(model)
    own = sum(model.get_parameter(parameter).numel() for parameter in held.also)
    describe_adapted(report, chosen, made, own)
    report.totals |= {f"model_{unit}_before": n for unit, n in before.items()}
    added = {"numel": report.totals["stored"], "bytes": report.totals["stored_bytes"]}
    report.totals |= {f"model_{unit}_after": n + added[unit] for unit, n in before.items()}
    report.sections["adapter"] = dict(report.totals)
    return report


def _named_modules(model: nn.Module, endings: Sequence[str], targeted: set[str]) -> list[str]:
    """The names of the parameters of every module that ends so."""
    found: list[str] = []
    for ending in endings:
        modules = [n for n, _ in model.named_modules() if n == ending or n.endswith("." + ending)]
        if not modules:
            raise ValueError(f"modules_to_save: no module's name ends in {ending!r}")
        for path in modules:
            inside = {f"{path}.{name}" if name else path for name, _ in _parts(model, path)}
            if clash := inside & targeted:
                raise ValueError(f"{min(clash)} is both a target and to be saved in full: choose")
            if any(isinstance(part, Adapted) for _, part in _parts(model, path)):
                raise ValueError(f"{path} carries an adapter, so it cannot be saved in full")
        found += [
            f"{path}.{leaf}"
            for path in modules
            for leaf, _ in model.get_submodule(path).named_parameters()
        ]
    return found


def _parts(model: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    return model.get_submodule(path).named_modules()


def _calibrate(
    model: nn.Module,
    method: str,
    recipes: Mapping[str, Adaptation],
    sites: list[Site],
    needs: frozenset[str],
    data: Any,
    loss: Any,
    statistics: str | os.PathLike[str] | None,
    report: Report,
    **reading: Any,
) -> None:
    if statistics is not None and Path(statistics).is_file():
        load_statistics(model, sites, statistics, needs)
        return
    if data is None:
        wanted = ", ".join(sorted(needs))
        raise DataError(f"{method!r} needs calibration data ({wanted}): give data=")
    # What is saved may be read by another method, which needs all of it.
    watch = _watch(recipes) if statistics is None else None
    held = batches(data, **reading)
    report.notes += collect(model, sites, needs, held, loss=loss, watch=watch)
    if statistics is not None:
        save_statistics(model, sites, statistics)


def _watch(recipes: Mapping[str, Adaptation]) -> Callable[[], Watch] | None:
    """What ends the calibration where every recipe has something that does, each for its sites."""
    groups: dict[int, list[str]] = {}
    for name, recipe in recipes.items():
        groups.setdefault(id(recipe), []).append(name)
    makers = [(recipes[names[0]].watch, names) for names in groups.values()]

    def make() -> Watch:
        looks = [(maker(), names) for maker, names in makers if maker is not None]

        def look(found: Mapping[str, Mapping[str, Any]]) -> set[str]:
            parts = [(one, {n: found[n] for n in names if n in found}) for one, names in looks]
            return {name for one, part in parts for name in one(part)}

        return look

    return None if any(maker is None for maker, _ in makers) else make
