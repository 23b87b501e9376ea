"""Rows and totals of a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..models import Site, read
from ..operators import LowRank, Operator
from ..operators.counting import count_each
from ..report import SiteRow
from .plan import Plan


def describe_plan(plan: Plan) -> list[SiteRow]:
    """What each site would become, counted from shapes alone."""
    rows = []
    for unit, size in zip(plan.units, plan.sizes, strict=True):
        for i, (site, op) in enumerate(zip(unit.sites, unit.ops, strict=True)):
            out, into = site.shape
            # a unit's sites share the factor on their input; the first is billed for it
            numel = op.numel() if size is None else size * (out + (into if i == 0 else 0))
            kind = type(op).__name__ if size is None else "LowRank"
            after = (numel, numel * op.dtype.itemsize)
            rows.append(_row(site, op, (op.numel(), op.bytes()), kind, after, size))
    return rows


def describe_sites(
    model: nn.Module, plan: Plan, errors: Mapping[str, float] | None = None
) -> list[SiteRow]:
    """What each site has become, counted on the operators that are there."""
    old = [op for unit in plan.units for op in unit.ops]
    new = [read(model, site) for site in plan.sites]
    rows = []
    for site, was, op, before, after in zip(
        plan.sites, old, new, count_each(old), count_each(new), strict=True
    ):
        rank = max((m.rank for m in op.modules() if isinstance(m, LowRank)), default=None)
        row = _row(site, was, before, type(op).__name__, after, rank)
        row.error = (errors or {}).get(site.name, 0.0)
        rows.append(row)
    return rows


def total_sizes(model: nn.Module, rows: Iterable[SiteRow]) -> dict[str, Any]:
    """Numbers and bytes of the targeted sites, before and after, and of the model as it is."""
    rows = list(rows)
    before, after = sum(r.numel_before for r in rows), sum(r.numel_after for r in rows)
    parameters = {id(p): p for p in model.parameters()}.values()
    stored = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    return {
        "sites": len(rows),
        "numel_before": before,
        "numel_after": after,
        "keep": after / before if before else 1.0,
        "bytes_before": sum(r.bytes_before for r in rows),
        "bytes_after": sum(r.bytes_after for r in rows),
        "model_numel": sum(p.numel() for p in parameters),
        "model_bytes": sum(t.numel() * t.element_size() for t in stored),
    }


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
