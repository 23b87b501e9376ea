"""Weights that share inner channels: what one makes and another reads, and nobody else sees."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .site import Site

#: role of the weight that reads the channels -> roles of those that make them
_MAKERS = {"down": ("gate", "up", "gate_up"), "o": ("v",)}


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
    found: list[Channels] = []
    rest: dict[str, Site] = {site.name: site for site in sites}
    for scope in (_parent, _block):  # a decoder block has two attentions, told apart by parent
        groups: dict[str, list[Site]] = defaultdict(list)
        for site in rest.values():
            groups[scope(site)].append(site)
        for group in groups.values():
            for role, made_by in _MAKERS.items():
                readers = [s for s in group if s.role == role]
                makers = [s for s in group if s.role in made_by]
                if len(readers) != 1 or not makers:
                    continue
                width = readers[0].shape[1]
                if any(s.shape[0] != width * (1 + (s.role == "gate_up")) for s in makers):
                    continue
                part = "mlp" if role == "down" else "attention"
                found.append(Channels(part, width, tuple(makers), tuple(readers)))
                for site in (*readers, *makers):
                    del rest[site.name]
    alone = [_alone(site) for site in rest.values()]
    order = {site.name: place for place, site in enumerate(sites)}
    return sorted(found + alone, key=lambda c: min(order[s.name] for s in (*c.makers, *c.readers)))


def _alone(site: Site) -> Channels:
    if site.role in ("q", "k", "v", "qkv", "gate", "up", "gate_up"):
        part = "mlp" if site.role in _MAKERS["down"] else site.name
        return Channels(part, site.shape[0], (site,), ())
    part = {"down": "mlp", "o": "attention"}.get(site.role, site.name)
    return Channels(part, site.shape[1], (), (site,))


def _parent(site: Site) -> str:
    return site.name.rpartition(".")[0]


def _block(site: Site) -> str:
    inside = re.match(r"(.*?\.\d+)\.", site.name)
    return inside.group(1) if inside else site.name
