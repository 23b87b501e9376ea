"""Putting an adapter's values into the leaves of another that is there already."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import SiteError
from ..models import Site
from ..operators import LowRank, Operator, Scaled, describe

_REMEDY = "Load it under a name of its own instead of swapping."


@torch.no_grad()
def swap_values(
    sites: Mapping[str, Site], into: Mapping[str, Operator], new: Mapping[str, Operator]
) -> None:
    """Copy the leaves of `new` into those of `into`, in place: the objects stay, so that a
    compiled model needs no new graph.

    A smaller rank is filled up with zeros, and a scale that differs goes into the left factor.
    Nothing is copied unless everything fits: raises SiteError.
    """
    values: dict[int, tuple[Tensor, Tensor]] = {}
    for name, site in sites.items():
        for leaf, value in _pairs(site, into[name], new[name], 1.0):
            before = values.setdefault(id(leaf), (leaf, value))[1]
            if before is not value and not torch.equal(before, value):
                raise SiteError(site.where, "two sites share a leaf here, and not there", _REMEDY)
    for leaf, value in values.values():
        leaf.copy_(value)


def _pairs(
    site: Site, old: Operator, new: Operator, scale: float
) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(old, Scaled):
        yield from _pairs(site, old.operator, new, scale / old.scale if old.scale else math.nan)
        return
    if isinstance(new, Scaled):
        yield from _pairs(site, old, new.operator, scale * new.scale)
        return
    if type(old) is not type(new):
        raise SiteError(
            site.where, f"a {type(new).__name__} does not fit a {type(old).__name__}", _REMEDY
        )
    if isinstance(old, LowRank) and isinstance(new, LowRank):
        yield from _low_rank_pairs(site, old, new, scale)
        return
    if scale != 1:
        raise SiteError(site.where, f"the scale differs by a factor of {scale:g}", _REMEDY)
    if _options(old) != _options(new):
        raise SiteError(site.where, f"the options of its {type(old).__name__} differ", _REMEDY)
    leaves = {**new._parameters, **new._buffers}
    for name, leaf in (*old._parameters.items(), *old._buffers.items()):
        value = leaves.get(name)
        if (leaf is None) != (value is None) or (
            leaf is not None and value is not None and leaf.shape != value.shape
        ):
            raise SiteError(site.where, f"{name} has another shape", _REMEDY)
        if leaf is not None and value is not None:
            yield leaf, value
    before, after = dict(old.named_children()), dict(new.named_children())
    if set(before) != set(after):
        raise SiteError(site.where, f"the parts of its {type(old).__name__} differ", _REMEDY)
    for name, child in before.items():
        mine = [child] if isinstance(child, Operator) else list(child.children())
        theirs = [after[name]] if isinstance(child, Operator) else list(after[name].children())
        if len(mine) != len(theirs):
            raise SiteError(site.where, f"{len(theirs)} parts for {len(mine)}", _REMEDY)
        for one, other in zip(mine, theirs, strict=True):
            assert isinstance(one, Operator)
            assert isinstance(other, Operator)
            yield from _pairs(site, one, other, 1.0)


def _low_rank_pairs(
    site: Site, old: LowRank, new: LowRank, scale: float
) -> Iterator[tuple[Tensor, Tensor]]:
    if math.isnan(scale) or old.shape != new.shape or new.rank > old.rank:
        raise SiteError(
            site.where,
            f"rank {new.rank} of {new.shape} does not fit into rank {old.rank} of {old.shape}",
            "Make the first adapter of the largest rank that will be swapped in.",
        )
    for name, axis in LowRank.rank_axes.items():
        leaf, value = getattr(old, name), getattr(new, name)
        if (leaf is None) != (value is None):
            raise SiteError(site.where, f"one of the two has no {name}", _REMEDY)
        if leaf is not None and value is not None:
            full = torch.zeros_like(leaf)
            kept = full.narrow(axis, 0, new.rank)
            kept.copy_(value * scale if name == "b" and scale != 1 else value)
            yield leaf, full


def _options(op: Operator) -> dict[str, Any]:
    return {
        key: value
        for key, value in describe(op).items()
        if not isinstance(value, dict)
        and not (isinstance(value, list) and value and isinstance(value[0], dict))
    }
