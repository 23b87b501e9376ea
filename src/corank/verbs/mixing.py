"""Compositions role by role: which suits which, at sizes where their errors sum least."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..allocation import Candidate, greedy
from ..engine.plan import Plan
from ..engine.summary import describe_sites, model_sizes, total_sizes
from ..models import Site, choose_sites, read, survey
from ..report import Report
from ..report.report import SiteRow
from ..rewrites import Menu, Unit
from .composing import compose
from .options import Options
from .profiling import Tried


@dataclass(frozen=True)
class Part:
    """A composition for some of the weights, and the fraction of their bytes that stays."""

    steps: Sequence[Any]
    keep: float
    targets: Any


def mix(model: nn.Module, sites: Sequence[Site], tried: Sequence[Tried], most: int) -> list[Part]:
    """One composition and size for each role, of those tried, within `most` bytes by the profile.

    Roles get what they took in the profile, which may be less than the size tried, and in
    proportion what then is left of the budget. Empty where nothing fits. Roles that get the same
    share a part; those that may stay as they are have none.
    """
    roles: dict[str, list[Site]] = defaultdict(list)
    for site in sites:
        roles[site.role].append(site)
    if not tried:
        return []
    units = [Unit(found, [read(model, site) for site in found]) for found in roles.values()]
    menus = [_menu(role, unit.bytes, tried) for role, unit in zip(roles, units, strict=True)]
    candidates = [Candidate(unit, menu) for unit, menu in zip(units, menus, strict=True)]
    try:
        picks = greedy(candidates, most)
    except ValueError:
        return []
    parts: dict[int, list[Candidate]] = defaultdict(list)
    for candidate, pick in zip(candidates, picks, strict=True):
        number = candidate.menu.sizes[pick]
        if number is not None:
            assert isinstance(number, int)
            parts[number].append(candidate)
    took = {i: _bytes(tried[i], found) for i, found in parts.items()}
    spent = sum(c.menu.costs[pick] for c, pick in zip(candidates, picks, strict=True))
    left = (most - spent) / max(1, sum(took.values()))  # sizes come in steps, so some is left
    return [_part(tried[i], found, int(took[i] * (1 + left))) for i, found in parts.items()]


def _bytes(tried: Tried, found: Sequence[Candidate]) -> int:
    return sum(tried.bytes[candidate.unit.sites[0].role] for candidate in found)


def _part(tried: Tried, found: Sequence[Candidate], most: int) -> Part:
    sites = [site for candidate in found for site in candidate.unit.sites]
    keep = min(1.0, (most + 0.5) / sum(candidate.bytes for candidate in found))
    return Part(tried.steps, keep, f"re:^({'|'.join(re.escape(s.name) for s in sites)})$")


def _menu(role: str, whole: int, tried: Sequence[Tried]) -> Menu:
    """What the role can become, sizes being places in `tried`, or None, which is `whole` bytes."""
    entries: list[tuple[int, float, int | None]] = [(whole, 0.0, None)]
    entries += [(t.bytes[role], t.errors[role], i) for i, t in enumerate(tried)]
    kept: list[tuple[int, float, int | None]] = []
    for entry in sorted(entries, key=lambda entry: entry[:2]):
        if not kept or (entry[0] > kept[-1][0] and entry[1] < kept[-1][1]):
            kept.append(entry)
    costs, errors, places = (list(column) for column in zip(*kept, strict=True))
    return Menu(places, costs, lambda: errors)


def compose_parts(model: nn.Module, parts: Sequence[Part], options: Options) -> Report:
    """The parts one after another, in place, and one report of them all."""
    before = model_sizes(model)
    reports = [
        compose(model, part.steps, replace(options, keep=part.keep, targets=part.targets))
        for part in parts
    ]
    whole = reports[-1]
    whole.method = (
        "; ".join(f"{_roles(r)}: {r.method}" for r in reports) if reports[1:] else whole.method
    )
    whole.sites = [row for report in reports for row in report.sites]
    whole.sites += _as_they_are(model, {row.name for row in whole.sites}, options)
    whole.totals = total_sizes(whole.sites, before, model_sizes(model))
    whole.notes = list(dict.fromkeys(note for report in reports for note in report.notes))
    whole.sections["steps"] = [row for report in reports for row in report.sections["steps"]]
    whole.seconds = {k: sum(r.seconds.get(k, 0.0) for r in reports) for k in whole.seconds}
    return whole


def _as_they_are(model: nn.Module, done: Container[str], options: Options) -> list[SiteRow]:
    """The rows of targeted weights that no part is for."""
    sites = choose_sites(*survey(model, options.seed), options.targets)
    units = [Unit([site], [read(model, site)]) for site in sites if site.name not in done]
    return describe_sites(model, Plan(units, [None] * len(units)), {})


def _roles(report: Report) -> str:
    return ", ".join(dict.fromkeys(row.role for row in report.sites))
