"""Weights that share inner channels: what one makes and another reads, and nobody else sees."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .site import Site

#: role of the weight that reads the channels -> roles of those that make them
_MAKERS = {"down": ("gate", "up", "gate_up"), "o": ("v",)}
_CUT_WITH = _MAKERS | {"k": ("q",), "expert_down": ("expert_gate_up",)}


@dataclass(frozen=True)
class Channels:
    """Inner channels of one block: sites whose outputs they are, and sites whose inputs.

    `part` is "mlp", "attention" or, for a weight that shares with no other, its name.
    """

    part: str
    width: int
    makers: tuple[Site, ...]
    readers: tuple[Site, ...]

    @property
    def seed(self) -> int:
        """The run's seed."""
        return (*self.makers, *self.readers)[0].seed

    def rows(self, site: Site, channels: Tensor) -> Tensor:
        """The outputs of one of the makers that belong to these channels."""
        if site.shape[0] == 2 * self.width:  # gate and up in one, one after the other
            return torch.cat([channels, channels + self.width])
        return channels


def channels(sites: Sequence[Site]) -> list[Channels]:
    """Every site in exactly one group: with those of its block that share its inner channels.

    q, k and qkv make channels by themselves; of any other weight that stands alone, the inputs
    count as its channels.
    """
    rest = {site.name: site for site in sites}
    found = [
        Channels(
            "mlp" if reader.role == "down" else "attention", reader.shape[1], makers, (reader,)
        )
        for makers, reader in _couples(rest, _MAKERS, _as_wide)
    ]
    alone = [_alone(site) for site in rest.values()]
    order = {site.name: place for place, site in enumerate(sites)}
    return sorted(found + alone, key=lambda c: min(order[s.name] for s in (*c.makers, *c.readers)))


def modules(sites: Sequence[Site]) -> list[list[Site]]:
    """The sites in groups whose inner dimensions can be cut together without a trace outside.

    gate, up and down, of each expert its own; v and o, of which a value may be read by several
    heads; q and k, whose products alone are seen. A site that has lost its partner stands alone.
    """
    rest = {site.name: site for site in sites}
    found = [[*makers, reader] for makers, reader in _couples(rest, _CUT_WITH, _divides)]
    order = {site.name: place for place, site in enumerate(sites)}
    groups = [*found, *([site] for site in rest.values())]
    return sorted(groups, key=lambda group: min(order[site.name] for site in group))


def modules_and_mixers(sites: Sequence[Site]) -> list[list[Site]]:
    """As `modules`, and in_proj with out_proj of mixers whose inside is known."""
    by_name = {site.name: site for site in sites}
    found = []
    for site in sites:
        reader = by_name.get(f"{_parent(site)}.out_proj")
        if site.mixer is not None and reader is not None:
            found.append([site, reader])
    taken = {site.name for group in found for site in group}
    order = {name: place for place, name in enumerate(by_name)}
    groups = [*found, *modules([site for site in sites if site.name not in taken])]
    return sorted(groups, key=lambda group: min(order[site.name] for site in group))


def _couples(
    rest: dict[str, Site],
    partners: Mapping[str, tuple[str, ...]],
    fits: Callable[[Site, Site], bool],
) -> list[tuple[tuple[Site, ...], Site]]:
    """(makers, reader) of one scope, where there is one reader; taken out of `rest`."""
    found = []
    for scope in (
        _expert,
        _parent,
        _block,
    ):  # a decoder block has two attentions, told apart by parent
        groups: dict[str, list[Site]] = defaultdict(list)
        for site in rest.values():
            groups[scope(site)].append(site)
        for group in groups.values():
            for role, made_by in partners.items():
                readers = [s for s in group if s.role == role]
                makers = [s for s in group if s.role in made_by]
                if len(readers) != 1 or not makers:
                    continue
                if not all(fits(maker, readers[0]) for maker in makers):
                    continue
                found.append((tuple(makers), readers[0]))
                for site in (*readers, *makers):
                    del rest[site.name]
    return found


def _as_wide(maker: Site, reader: Site) -> bool:
    return maker.shape[0] == reader.shape[1] * (1 + maker.role.endswith("gate_up"))


def _divides(maker: Site, reader: Site) -> bool:
    if reader.role.endswith("down"):
        return _as_wide(maker, reader)
    if reader.role == "k":  # several heads of queries may meet one of keys
        return maker.shape[0] % reader.shape[0] == 0
    return reader.shape[1] % maker.shape[0] == 0


def _alone(site: Site) -> Channels:
    if site.role in ("q", "k", "v", "qkv", "gate", "up", "gate_up"):
        part = "mlp" if site.role in _MAKERS["down"] else site.name
        return Channels(part, site.shape[0], (site,), ())
    part = {"down": "mlp", "o": "attention"}.get(site.role, site.name)
    return Channels(part, site.shape[1], (), (site,))


def _expert(site: Site) -> str:
    path, _, number = site.expert if site.kind == "expert" else (site.name, "", 0)
    return f"{path}.{number}"


def _parent(site: Site) -> str:
    return site.name.rpartition(".")[0]


def _block(site: Site) -> str:
    inside = re.match(r"(.*?\.\d+)\.", site.name)
    return inside.group(1) if inside else site.name
