"""Attention heads of several layers that share their weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SiteError
from ..models import Site, attentions
from ..operators import BlockColumns, BlockRows, Dense, Operator
from .decomposed import wide
from .menu import Menu
from .rewrite import Counts, Family, Unit


def head_sharing(head_size: int | None) -> Family:
    """Heads take the weights of like ones in earlier layers: the size is how many keep their own.

    A unit holds the q, k, v and o, or some of them, of attentions of one kind. What is shared is
    a head of keys with the heads of queries that read it. Heads are alike by the cosine of their
    q and k, one after the other (of all the unit has where it has neither). Those go whose nearest
    one in an earlier layer is the most like; each takes the nearest that stays in an earlier layer.
    head_size: rows of one head in q, k and v; None for what the model says.
    """
    return Family(
        partial(_menu, head_size), partial(_build, head_size), partial(_counts, head_size)
    )


@final
class _Layout(NamedTuple):
    layers: list[dict[str, int]]  # role -> the place of its site in the unit
    heads: int  # of keys, in each layer

    @property
    def total(self) -> int:
        return len(self.layers) * self.heads


def _layout(head_size: int | None, unit: Unit) -> _Layout:
    place = {site.name: i for i, site in enumerate(unit.sites)}
    layers = [
        {role: place[site.name] for role, site in roles.items()}
        for roles in attentions(unit.sites).values()
    ]
    if len(layers) == 1:
        return _Layout(layers, 1)  # nothing to share with, so nothing to divide
    first = [unit.sites[i] for i in layers[0].values()]
    known = [site.heads.size for site in first if site.heads is not None]
    size = head_size or next(iter(known), None)
    if size is None:
        raise SiteError(
            first[0].where, "how many rows make a head is not known",
            "Give head_size=, the model's head dimension",
        )  # fmt: skip
    heads = min(_side(site) for site in first) // size
    for site in first:
        if heads < 1 or _side(site) % (heads * size):
            raise SiteError(
                site.where, f"heads of {size} do not divide its {_side(site)} channels",
                "Give the model's head dimension as head_size=",
            )  # fmt: skip
    return _Layout(layers, heads)


def _side(site: Site) -> int:
    return site.shape[1] if site.role == "o" else site.shape[0]


def _cut(unit: Unit, layout: _Layout, role: str) -> Tensor:
    """The weights of that role by head, (heads of all layers, rows, columns); o transposed."""
    weights = [wide(unit.ops[layer[role]]) for layer in layout.layers]
    turned = torch.stack([w.mT if role == "o" else w for w in weights])
    return turned.unflatten(1, (layout.heads, -1)).flatten(0, 1)


def _likeness(unit: Unit, layout: _Layout) -> Tensor:
    """The cosine between each two heads, -inf but from later layers to earlier ones."""
    there = [*layout.layers[0]]
    roles = [role for role in there if role in ("q", "k")] or there
    heads = torch.cat([_cut(unit, layout, role).flatten(1) for role in roles], 1)
    heads = F.normalize(heads, dim=1)
    layer = torch.arange(layout.total, device=heads.device) // layout.heads
    return (heads @ heads.mT).masked_fill(layer[:, None] <= layer, -torch.inf)


def _sources(likeness: Tensor, kept: int) -> Tensor:
    """For each head the one whose weights it takes, itself where it keeps its own."""
    gone = likeness.amax(1).argsort(descending=True, stable=True)[: len(likeness) - kept]
    own = torch.arange(len(likeness), device=likeness.device)
    nearest = likeness.index_fill(1, gone, -torch.inf).argmax(1)
    return own.index_copy(0, gone, nearest[gone])


def _build(head_size: int | None, unit: Unit, kept: int) -> list[Operator]:
    layout = _layout(head_size, unit)
    if not layout.heads <= kept <= layout.total:
        raise SiteError(
            unit.sites[0].where,
            f"{kept} is outside {layout.heads}, the heads of the first layer, to {layout.total}",
            "Ask for a rank, the number of heads that keep their weights, in that range",
        )
    sources = _sources(_likeness(unit, layout), kept).tolist()
    made = list(unit.ops)
    for role in layout.layers[0]:
        heads, dtype = _cut(unit, layout, role), unit.ops[layout.layers[0][role]].dtype
        blocks = _blocks(heads.to(dtype), sources, layout.heads, role == "o")
        for layer, parts in zip(layout.layers, blocks, strict=True):
            join = BlockColumns if role == "o" else BlockRows
            made[layer[role]] = join(*parts) if len(parts) > 1 else parts[0]
    return made


def _blocks(heads: Tensor, sources: list[int], per: int, turned: bool) -> list[list[Operator]]:
    """Each layer's blocks: one for each head that is shared, one for a run of others."""
    lent = {source for head, source in enumerate(sources) if source != head}

    def weight(numbers: list[int]) -> nn.Parameter:
        rows = heads[numbers].flatten(0, 1)
        return nn.Parameter((rows.mT if turned else rows).contiguous(), requires_grad=False)

    shared = {source: weight([source]) for source in sorted(lent)}

    def alone(head: int) -> int:
        return head if sources[head] != head or head in lent else -1

    layers: list[list[Operator]] = []
    for start in range(0, len(sources), per):
        runs = groupby(range(start, start + per), alone)
        layers.append([
            Dense(weight(list(run)) if head < 0 else shared[sources[head]]) for head, run in runs
        ])  # fmt: skip
    return layers


def _counts(head_size: int | None, unit: Unit, kept: int | None) -> list[Counts]:
    """Which layers' heads stay is not known from shapes: told of the first."""
    if kept is None:
        return [(op.numel(), op.bytes()) for op in unit.ops]
    layout = _layout(head_size, unit)
    found = [(0, 0)] * len(unit.ops)
    for number, layer in enumerate(layout.layers):
        stay = min(max(kept - number * layout.heads, 0), layout.heads)
        for place in layer.values():
            op = unit.ops[place]
            numel = op.shape[0] * op.shape[1] // layout.heads * stay
            found[place] = (numel, numel * op.dtype.itemsize)
    return found


def _menu(head_size: int | None, unit: Unit) -> Menu:
    layout = _layout(head_size, unit)
    sizes = range(layout.heads, layout.total) or [layout.total]
    costs = [sum(bytes_ for _, bytes_ in _counts(head_size, unit, kept)) for kept in sizes]
    if costs[-1] >= unit.bytes:
        return Menu(sizes, costs, lambda: _errors(unit, layout, sizes))
    return Menu([*sizes, None], [*costs, unit.bytes], lambda: [*_errors(unit, layout, sizes), 0.0])


def _errors(unit: Unit, layout: _Layout, sizes: Sequence[int]) -> list[float]:
    apart = torch.zeros(())
    for role in layout.layers[0]:
        heads = _cut(unit, layout, role).flatten(1)
        apart = apart.to(heads) + torch.cdist(heads, heads).square()
    likeness = _likeness(unit, layout)
    return [float(apart.gather(1, _sources(likeness, kept)[:, None]).sum()) for kept in sizes]
