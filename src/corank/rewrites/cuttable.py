"""Which channels a unit can lose, by the roles of its sites."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import SiteError
from ..models import Site, channels
from .layout import Layout
from .rewrite import Unit
from .runs import Run


def layout_of(unit: Unit) -> Layout | None:
    """The channels that a unit can lose, None for one that has to stay whole.

    gate, up and down share their inner channels, v and o the dimensions of the values, q and k
    those of their heads; in_proj and out_proj of a mixer the channels of its heads (z and x), and B
    and C in in_proj the dimensions of the state. A lone maker loses outputs, any other lone weight
    inputs.
    """
    sites = list(unit.sites)
    if any(site.kind == "embedding" or site.role == "qkv" for site in sites):
        return None
    if sites[-1].role in ("q", "k"):
        return _products(sites)
    if is_mixer(unit):
        return _mixer(sites)
    if sites[0].role == "v":
        return _values(sites)
    if len(sites) > 1:
        *makers, reader = sites
        return _shared(reader.shape[1], makers, [reader])
    (alone,) = channels(sites)
    return _shared(alone.width, list(alone.makers), list(alone.readers))


def has_known_values(unit: Unit) -> bool:
    """Whether it is a v and its o, and it is known which heads they have."""
    return [site.role for site in unit.sites] == ["v", "o"] and unit.sites[0].heads is not None


def is_mixer(unit: Unit) -> bool:
    """Whether it is an in_proj and its out_proj, and it is known how they are divided."""
    return len(unit.sites) == 2 and unit.sites[0].mixer is not None


def _shared(width: int, makers: list[Site], readers: list[Site]) -> Layout:
    """A maker of twice as many outputs has gate and up one after the other."""
    places = [torch.arange(site.shape[0]).view(-1, width).mT for site in makers]
    places += [_singles(width) for _ in readers]
    reads = [False] * len(makers) + [True] * len(readers)
    return Layout([Run(1, _singles(width))], places, reads)


def _values(sites: list[Site]) -> Layout | None:
    """The dimensions of v, which several heads in o may read."""
    value, width = sites[0], sites[0].shape[0]
    copies = [site.shape[1] // width for site in sites[1:]]
    if value.heads is None:
        return None if copies not in ([], [1]) else _shared(width, [value], sites[1:])
    heads = _count(value, value.heads.size)
    places = [_repeated(heads, value.heads.size, count) for count in [1, *copies]]
    run = Run(heads, _singles(value.heads.size))
    return Layout([run], places, [False, *(True for _ in copies)])


def _products(sites: list[Site]) -> Layout | None:
    """The dimensions of k, which several heads in q may meet."""
    key, width = sites[-1], sites[-1].shape[0]
    copies = [site.shape[0] // width for site in sites]
    if key.heads is None:
        return None if max(copies) > 1 else _shared(width, sites, [])
    if key.heads.units is None:
        return None
    heads = _count(key, key.heads.size)
    places = [_repeated(heads, key.heads.size, count) for count in copies]
    run = Run(heads, torch.tensor(key.heads.units))
    return Layout([run], places, [False] * len(sites))


def _mixer(sites: list[Site]) -> Layout:
    """The channels of the heads, each a row of z and one of x, then the state's, of B and of C."""
    mixer = sites[0].mixer
    assert mixer is not None
    inner, states = mixer.inner, mixer.states
    z, x = torch.arange(2 * inner).view(2, inner)
    b, c = 2 * inner + torch.arange(2 * states).view(2, states)
    made = torch.cat([torch.stack([z, x], 1), torch.stack([b, c], 1)])
    read = torch.cat([z, torch.full((states,), -1)])[:, None]
    runs = [Run(mixer.heads, _singles(mixer.head_dim)), Run(mixer.groups, _singles(mixer.state))]
    steps = torch.arange(2 * (inner + states), mixer.rows)
    return Layout(runs, [made, read], [False, True], [steps, torch.arange(0)])


def _count(site: Site, size: int) -> int:
    if site.shape[0] % size:
        raise SiteError(
            site.where, f"heads of {size} do not divide its {site.shape[0]} outputs",
            "Leave it out of the targets",
        )  # fmt: skip
    return site.shape[0] // size


def _singles(count: int) -> Tensor:
    return torch.arange(count)[:, None]


def _repeated(heads: int, size: int, copies: int) -> Tensor:
    """Where each dimension of a head is, with every head there `copies` times in a row."""
    every = torch.arange(heads * copies * size).view(heads, copies, size)
    return every.transpose(1, 2).flatten(0, 1)  # (heads * size, copies)
