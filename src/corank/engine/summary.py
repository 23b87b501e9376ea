"""Rows and totals of a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..models import Site, read, read_bias
from ..operators import LowRank, Operator
from ..operators.counting import count_each
from ..report import SiteRow
from ..rewrites import Family
from .plan import Plan


def describe_plan(plan: Plan, family: Family) -> list[SiteRow]:
    """What each site would become, counted from shapes alone."""
    rows = []
    for unit, size in zip(plan.units, plan.sizes, strict=True):
        counts = [(op.numel(), op.bytes()) for op in unit.ops]
        counted = counts
        if size is not None:
            pairs = zip(family.counts(unit, size), family.new_biases(unit), strict=True)
            counted = [(n + more, b + extra) for (n, b), (more, extra) in pairs]
        for site, op, before, after in zip(unit.sites, unit.ops, counts, counted, strict=True):
            kind = type(op).__name__ if size is None else "planned"
            rank = size if isinstance(size, int) else None
            rows.append(_row(site, op, before, kind, after, rank or None))
    return rows


def describe_sites(
    model: nn.Module, plan: Plan, errors: Mapping[str, float] | None = None
) -> list[SiteRow]:
    """What each site has become, counted on the operators and the new biases that are there.

    errors: of the sites that were rewritten, 0 of all others; None where none is known.
    """
    old = [op for unit in plan.units for op in unit.ops]
    new = [read(model, site) for site in plan.sites]
    rows = []
    for site, was, op, before, after in zip(
        plan.sites, old, new, count_each(old), count_each(new), strict=True
    ):
        rank = max((m.rank for m in op.modules() if isinstance(m, LowRank)), default=None)
        if not site.bias and (bias := read_bias(model, site)) is not None:
            after = (after[0] + bias.numel(), after[1] + bias.nbytes)
        row = _row(site, was, before, type(op).__name__, after, rank)
        row.error = None if errors is None else errors.get(site.name, 0.0)
        rows.append(row)
    return rows


def model_sizes(model: nn.Module) -> dict[str, int]:
    """Numbers in the parameters, and bytes of all that is stored, of a whole model."""
    parameters = {id(p): p for p in model.parameters()}.values()
    stored = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    return {
        "numel": sum(p.numel() for p in parameters),
        "bytes": sum(t.numel() * t.element_size() for t in stored),
    }


def total_sizes(
    rows: Iterable[SiteRow], before: Mapping[str, int], after: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Numbers and bytes of the targeted sites and of the whole model, before and after.

    Without `after`, the model is what it was less what the sites would save.
    """
    rows = list(rows)
    totals: dict[str, Any] = {"sites": len(rows)}
    for unit in ("numel", "bytes"):
        was, now = (sum(getattr(r, f"{unit}_{when}") for r in rows) for when in ("before", "after"))
        totals |= {f"{unit}_before": was, f"{unit}_after": now}
        totals[f"model_{unit}_before"] = before[unit]
        totals[f"model_{unit}_after"] = before[unit] - was + now if after is None else after[unit]
    kept = totals["numel_after"] / totals["numel_before"] if totals["numel_before"] else 1.0
    return totals | {"keep": kept}


def _row(
    site: Site,
    old: Operator,
    before: tuple[int, int],
    kind: str,
    after: tuple[int, int],
    rank: int | None,
) -> SiteRow:
    return SiteRow(
        name=site.name,
        role=site.role,
        layer=site.layer,
        shape=old.shape,
        numel_before=before[0],
        numel_after=after[0],
        bytes_before=before[1],
        bytes_after=after[1],
        operator=kind,
        rank=rank,
    )
