"""Putting trainable operators in the place of weights, and counting them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ..adapters.factorized import Factorized, factorized
from ..errors import SiteError
from ..models import Site, install
from ..operators import Adapted, LowRank, Operator, is_linear
from ..operators.counting import count_each
from ..registry import Factorization
from ..report import Report, SiteRow
from .summary import total_sizes


def require_unfactorized(
    model: nn.Module, sites: Sequence[Site], there: Mapping[str, Operator]
) -> None:
    """Refuse weights that another method trains already."""
    taken = {name: held.method for held in factorized(model).values() for name in held.sites}
    for site in sites:
        if site.name in taken:
            problem = f"is factorised already, by {taken[site.name]!r}"
        elif isinstance(there[site.name], Adapted):
            problem = "carries an adapter"
        else:
            continue
        raise SiteError(site.where, problem, "Call corank.merge(model) first, or leave it out.")


@torch.no_grad()
def factorize_sites(
    model: nn.Module,
    held: Factorized,
    there: Mapping[str, Operator],
    recipes: Mapping[str, Factorization],
) -> dict[str, Operator]:
    """Rewrite each weight and put the result in its place, in the weight's dtype.

    `held` says where; on return it holds where that is in the end, and is the model's own record.
    Returns the operators by site. Nothing is installed until every rewrite has succeeded.
    """
    chosen = list(held.sites.values())
    for recipe in {id(r): r for r in recipes.values()}.values():
        if recipe.prepare is not None:
            own = [s for s in held.sites.values() if recipes[s.name] is recipe]
            kept = {s.name for s in recipe.prepare(own, [there[s.name] for s in own])}
            chosen = [s for s in chosen if recipes[s.name] is not recipe or s.name in kept]
    made: dict[str, Operator] = {}
    for site in chosen:
        old = there[site.name]
        made[site.name] = recipes[site.name].rewrite(old, site).to(old.dtype)
        if site.kind == "embedding" and not is_linear(made[site.name]):
            raise SiteError(
                site.where, "the method makes no matrix, whose rows could be looked up",
                "Leave embeddings out of the targets.",
            )  # fmt: skip
    for site in chosen:
        install(model, site, made[site.name])
    held.sites = {site.name: site for site in chosen}
    factorized(model)[held.name] = held
    return made


def plan_factorized(
    report: Report, sites: Sequence[Site], there: Mapping[str, Operator],
    recipes: Mapping[str, Factorization], before: Mapping[str, int],
) -> None:  # fmt: skip
    """Fill a report with what would train and be stored, from shapes alone."""
    groups: dict[int, list[Site]] = {}
    for site in sites:
        groups.setdefault(id(recipes[site.name]), []).append(site)
    trained = 0
    for group in groups.values():
        recipe = recipes[group[0].name]
        trained += recipe.count(group)
        for site in group:
            own, width = recipe.count([site]), there[site.name].dtype.itemsize
            stored = own + recipe.frozen([site])
            after = (stored, stored * width)
            report.sites.append(_row(site, there[site.name], after, own, "planned"))
    report.totals = total_sizes(report.sites, before) | {"trainable": trained}
    report.notes.append("dry run: counted by the paper's formula from shapes; nothing was changed")


def describe_factorized(
    report: Report, sites: Sequence[Site], there: Mapping[str, Operator],
    made: Mapping[str, Operator], before: Mapping[str, int], after: Mapping[str, int],
) -> None:  # fmt: skip
    """Fill a report with what trains and is stored at each site."""
    operators = [made[site.name] for site in sites]
    billed: set[int] = set()
    for site, op, counts in zip(sites, operators, count_each(operators), strict=True):
        leaves = {id(p): p.numel() for p in op.parameters() if p.requires_grad}
        trained = sum(n for key, n in leaves.items() if key not in billed)
        billed |= set(leaves)
        row = _row(site, there[site.name], counts, trained, type(op).__name__)
        row.rank = max((m.rank for m in op.modules() if isinstance(m, LowRank)), default=None)
        report.sites.append(row)
    trained = sum(row.trainable or 0 for row in report.sites)
    report.totals = total_sizes(report.sites, before, after) | {"trainable": trained}


def _row(site: Site, old: Operator, after: tuple[int, int], trained: int, kind: str) -> SiteRow:
    return SiteRow(
        name=site.name, role=site.role, layer=site.layer, shape=site.shape,
        numel_before=old.numel(), numel_after=after[0], bytes_before=old.bytes(),
        bytes_after=after[1], operator=kind, trainable=trained,
    )  # fmt: skip
