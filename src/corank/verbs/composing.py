"""Methods one after another under one budget: structure, codes for what it left, repair, healing.

Each step is a call of the verb that it belongs to, on the model as the steps before it left it, so
statistics are those of its inputs by then.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import nn

from ..calibration import Batches, batches
from ..engine.budget import budget_bytes
from ..engine.plan import Plan, only_sizes, shape_only
from ..engine.summary import describe_sites, model_sizes, total_sizes
from ..engine.transaction import unchanged_on_error
from ..errors import DataError
from ..models import Site, choose_sites, read, require_sites, survey
from ..report import Report, versions
from ..rewrites import Unit
from .options import Options
from .shrinking import heal_towards
from .steps import Step, read_steps, refuse_of_one
from .turns import Turns, meet


def compose(model: nn.Module, steps: Sequence[Any], options: Options) -> Report:
    """Do the steps in place, so that the model they end with meets the budget from below.

    The budget sizes one step, the free one: the one whose method needs it, else the last one that
    has a choice. Steps after it have sizes of their own, so it is tried at several sizes. Raises
    ValueError where two steps need the budget, where one would undo another, and where the budget
    cannot be met, naming what was reached; the model is then as it was.
    """
    started, listed = perf_counter(), read_steps(steps)
    refuse_of_one(options)
    sites = [_sites(model, step, options) for step in listed]
    refuse_undoing(listed, sites)
    options = replace(options, data=_held(options), tokenizer=None)
    every = list({site.name: site for found in sites for site in found}.values())
    old, before = [Unit([site], [read(model, site)]) for site in every], model_sizes(model)
    free = _free(model, listed, sites, options)
    ops, most = [unit.ops[0] for unit in old], None
    rest = before["bytes"] - sum(op.bytes() for op in ops)
    if options.keep is not None or options.size is not None:
        most = rest + budget_bytes(model, ops, keep=options.keep, size=options.size)
    wants_original = options.healing() or any(step.repairs for step in listed[1:])
    original = copy.deepcopy(model) if wants_original else None
    with unchanged_on_error(model, every), tempfile.TemporaryDirectory() as folder:
        first = options.statistics or Path(folder) / "first.safetensors"
        turns = Turns(model, listed, free, replace(options, original=original), first)
        reports = meet(turns, every, most, rest)
        rows = describe_sites(model, Plan(old, [None] * len(old)))
        report = Report(
            "compress", " + ".join(step.label for step in listed),
            parameters={"keep": options.keep, "size": options.size, "seed": options.seed},
            sites=rows, totals=total_sizes(rows, before, model_sizes(model)),
            seconds={"steps": perf_counter() - started},
            notes=list(dict.fromkeys(note for report in reports for note in report.notes)),
            refused={k: v for report in reports for k, v in report.refused.items()},
            sections={"steps": [_tell(s, r) for s, r in zip(listed, reports, strict=True)]},
            versions=versions(),
        )  # fmt: skip
        if original is not None:
            heal_towards(model, original, options.data, options.healing(), options, report)
    return report


def refuse_undoing(steps: Sequence[Step], sites: Sequence[Sequence[Site]]) -> None:
    """Refuse a step that would make another's work void: a new form of a weight that has one."""
    done: dict[str, list[Step]] = {}
    for step, found in zip(steps, sites, strict=True):
        for site in chain.from_iterable(step.recipe.group(list(found))):
            earlier = done.setdefault(site.name, [])
            for other in earlier:
                codes = step.method.area == other.method.area == "quantize"
                if codes or (step.method.area == "compress" and not step.repairs):
                    raise ValueError(
                        f"{step.label} would undo what {other.label} makes of {site.name}: put "
                        "structure first, then codes once, then repairs; or give them other targets"
                    )
            earlier.append(step)


def _free(
    model: nn.Module, steps: Sequence[Step], sites: Sequence[Sequence[Site]], options: Options
) -> int | None:
    """Which step the budget sizes."""
    budget = options.keep is not None or options.size is not None
    needy: list[int] = []
    able: list[int] = []
    for turn, (step, found) in enumerate(zip(steps, sites, strict=True)):
        recipe = step.recipe
        units = [
            Unit(g, [shape_only(s, read(model, s)) for s in g]) for g in recipe.group(list(found))
        ]
        if step.is_sized or (recipe.rank is None and only_sizes(recipe, units) is not None):
            continue
        (able if recipe.rank is not None else needy).append(turn)
    if len(needy) > 1:
        names = " and ".join(steps[turn].label for turn in needy)
        raise ValueError(f"one budget cannot size {names}: give all but one keep= or rank=")
    if needy and not budget:
        raise ValueError(
            f"how much is to stay of {steps[needy[0]].label}? Give keep= or size= for the whole, "
            "or the step a keep= or rank= of its own"
        )
    chosen = needy or able
    return chosen[-1] if chosen and budget else None


def _sites(model: nn.Module, step: Step, options: Options) -> list[Site]:
    every, left_out = survey(model, options.seed)
    targets = step.own.get("targets", options.targets)
    return require_sites(choose_sites(every, left_out, targets), left_out)


def _held(options: Options) -> Batches | None:
    """The data, read once for all steps."""
    if options.data is None:
        if options.healing():
            raise DataError("healing needs data to run the model on: give data=")
        return None
    return batches(
        options.data, tokenizer=options.tokenizer, count=options.count,
        sequence_length=options.sequence_length, batch_size=options.batch_size,
    )  # fmt: skip


def _tell(step: Step, report: Report) -> dict[str, Any]:
    """A row of the section "steps"."""
    return {
        "step": step.label, "bytes": report.totals["model_bytes_after"],
        "seconds": sum(report.seconds.values()),
    }  # fmt: skip
