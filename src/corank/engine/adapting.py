"""Putting adapters beside weights, and counting what that adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ..adapters import activate
from ..adapters.own import keep, switch
from ..adapters.record import Adapter, adapted, adapters
from ..models import Site, install
from ..operators import Adapted, Base, LowRank, Operator
from ..operators.counting import count_each
from ..registry import Adaptation
from ..report import Report, SiteRow


def note_earlier(model: nn.Module, sites: Sequence[Site]) -> None:
    """Let the sites know the adapters that their weights carry already."""
    weights = adapted(model) if adapters(model) else {}  # most models carry none: no walk
    for site in sites:
        held = weights.get(site.name)
        if held is not None:
            site.earlier = dict(zip(held.names, held.operators, strict=True))


def add_adapter(
    model: nn.Module,
    held: Adapter,
    there: Mapping[str, Operator],
    recipes: Mapping[str, Adaptation],
) -> dict[str, Operator]:
    """Put a new adapter beside what stands `there`; it acts and trains, and nothing else does.

    `held` says where it may stand and what else trains; on return it holds where it does stand,
    and is the model's own record. Returns the adapter's operators by site.
    """
    model.requires_grad_(False)
    with torch.no_grad():
        made = put_beside(model, held.name, list(held.sites.values()), there, recipes)
    held.sites = {name: site for name, site in held.sites.items() if name in made}
    held.also = (*held.also, *_also(model, list(held.sites.values()), recipes))
    held.trains = {name: _trained(op) for name, op in made.items()}
    for other in adapters(model).values():
        switch(model, other, on=False)
    stand_on(model, made)
    adapters(model)[held.name] = held
    keep(model, held)
    if len(adapters(model)) > 1:
        activate(model, held.name)
    for parameter in held.also:
        model.get_parameter(parameter).requires_grad_(True)
    return made


def _also(model: nn.Module, sites: list[Site], recipes: Mapping[str, Adaptation]) -> list[str]:
    """The model's own parameters that the methods train, by name."""
    makers = {r.also for r in recipes.values() if r.also is not None}
    if not makers:
        return []
    names = {id(p): n for n, p in model.named_parameters()}
    return [names[id(p)] for make in makers for p in make(model, sites)]


def _trained(op: Operator) -> tuple[str, ...]:
    return tuple(name for name, leaf in op.named_parameters() if leaf.requires_grad)


def put_beside(
    model: nn.Module,
    name: str,
    sites: Sequence[Site],
    there: Mapping[str, Operator],
    recipes: Mapping[str, Adaptation],
) -> dict[str, Operator]:
    """Rewrite each weight and put the result beside it as adapter `name`.

    there: what stands at each site. Returns the adapter's operator at each site that got one.
    Nothing is installed until every rewrite has succeeded.
    """
    bases = {n: op.base if isinstance(op, Adapted) else op for n, op in there.items()}
    for op in bases.values():
        op.requires_grad_(False)
    seen = {n: Base(op.shape).bind(op) for n, op in bases.items()}
    chosen = list(sites)
    for recipe in {id(r): r for r in recipes.values()}.values():
        if recipe.prepare is not None:
            own = [s for s in sites if recipes[s.name] is recipe]
            kept = {s.name for s in recipe.prepare(own, [seen[s.name] for s in own])}
            chosen = [s for s in chosen if recipes[s.name] is not recipe or s.name in kept]
    made: dict[str, Operator] = {}
    for site in chosen:
        made[site.name] = recipes[site.name].rewrite(seen[site.name], site)
    put(model, name, chosen, there, made)
    return made


def put(
    model: nn.Module,
    name: str,
    sites: Sequence[Site],
    there: Mapping[str, Operator],
    made: Mapping[str, Operator],
) -> None:
    """Put operators beside the weights that are `there`, as adapter `name`."""
    for site in sites:
        held, op = there[site.name], made[site.name]
        if isinstance(held, Adapted):
            held.add(name, op)
        else:
            install(model, site, Adapted(op, base=held, names=(name,), weights=(1.0,)))


def stand_on(model: nn.Module, made: Mapping[str, Operator]) -> None:
    """Leaves of other adapters that the new ones share and hold frozen train no more."""
    if not adapters(model):
        return
    frozen = {id(p) for op in made.values() for p in op.parameters() if not p.requires_grad}
    weights = adapted(model)
    for other in adapters(model).values():
        for path, names in other.trains.items():
            op = weights[path].adapter(other.name)
            other.trains[path] = tuple(n for n in names if id(op.get_parameter(n)) not in frozen)


def count_plan(
    report: Report, model: nn.Module, sites: Sequence[Site], recipes: Mapping[str, Adaptation]
) -> None:
    """Fill a report with what would train and be stored, from shapes alone."""
    groups: dict[int, list[Site]] = {}
    for site in sites:
        groups.setdefault(id(recipes[site.name]), []).append(site)
    trained = stored = 0
    for group in groups.values():
        recipe = recipes[group[0].name]
        for site in group:
            own, frozen = recipe.count([site]), recipe.frozen([site])
            report.sites.append(_row(site, own + frozen, own, (own + frozen) * 4, "planned"))
        trained += recipe.count(group)
        stored += recipe.count(group) + recipe.frozen(group)
    report.totals |= {"sites": len(sites), "trainable": trained, "stored": stored}
    report.notes.append("dry run: counted by the paper's formula from shapes; nothing was changed")


def describe_adapted(
    report: Report, sites: Sequence[Site], made: Mapping[str, Operator], also: int
) -> None:
    """Fill a report with what trains and is stored at each site; `also` numbers train elsewhere."""
    operators = [made[site.name] for site in sites]
    billed: set[int] = set()
    for site, op, (numel, bytes_) in zip(sites, operators, count_each(operators), strict=True):
        parts = list(op.modules())
        leaves = {
            id(p): p.numel()
            for part in parts
            for p in part._parameters.values()
            if p is not None and p.requires_grad
        }
        trained = sum(n for key, n in leaves.items() if key not in billed)
        billed |= set(leaves)
        row = _row(site, numel, trained, bytes_, type(op).__name__)
        row.rank = max((m.rank for m in parts if isinstance(m, LowRank)), default=None)
        report.sites.append(row)
    report.totals |= {
        "sites": len(sites),
        "trainable": sum(row.trainable or 0 for row in report.sites) + also,
        "stored": sum(row.numel_after for row in report.sites),
        "stored_bytes": sum(row.bytes_after for row in report.sites),
    }


def _row(site: Site, numel: int, trained: int, bytes_: int, kind: str) -> SiteRow:
    return SiteRow(
        name=site.name, role=site.role, layer=site.layer, shape=site.shape,
        numel_before=site.numel, numel_after=numel, bytes_before=0, bytes_after=bytes_,
        operator=kind, trainable=trained,
    )  # fmt: skip
