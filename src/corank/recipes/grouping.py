"""Which sites are rewritten together."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from ..models import Site, attentions, channels
from ..registry import Grouping

#: Roles whose layers can share an input basis; o and down are left alone (Basis Sharing).
SHARING = frozenset({"q", "k", "v", "qkv", "up", "gate", "gate_up"})


def consecutive_layers(count: int) -> Grouping:
    """Groups of `count` successive sites of one role and shape; other sites stay alone."""
    if count < 1:
        raise ValueError(f"layers={count}: a group has at least one layer")

    def group(sites: Sequence[Site]) -> list[list[Site]]:
        alike: dict[object, list[Site]] = defaultdict(list)
        for site in sites:
            alone = site.role not in SHARING
            alike[site.name if alone else (site.role, site.shape)].append(site)
        return [run[i : i + count] for run in alike.values() for i in range(0, len(run), count)]

    return group


def across_layers(sites: Sequence[Site]) -> list[list[Site]]:
    """The sites that stand in the same place of all layers of a stack; others stay alone."""
    alike: dict[object, list[Site]] = defaultdict(list)
    for site in sites:
        place = (
            site.name if site.layer is None else re.sub(r"(^|\.)\d+\.", r"\1*.", site.name, count=1)
        )
        alike[place, site.shape].append(site)
    return list(alike.values())


def sandwich(sites: Sequence[Site]) -> list[list[Site]]:
    """As `across_layers`, but the first and the last layer, among these sites, stay alone."""
    groups: list[list[Site]] = []
    for first, *others in across_layers(sites):
        *middle, last = others or [first]
        groups += [[first], middle, [last]] if others else [[first]]
    return [group for group in groups if group]


def experts_of_a_layer(*projections: str) -> Grouping:
    """One group of all targeted experts of a layer, of these projections; others are left out.

    Raises ValueError where no targeted site is one.
    """

    def group(sites: Sequence[Site]) -> list[list[Site]]:
        found: dict[str, list[Site]] = defaultdict(list)
        for site in sites:
            if site.kind == "expert" and site.expert[1] in projections:
                found[site.expert[0]].append(site)
        if not found:
            raise ValueError(
                f"no targeted weight is an expert's {' or '.join(projections)}: this method shares "
                "weights between the fused experts of a mixture; use another one for this model"
            )
        return list(found.values())

    return group


def attentions_of_a_kind(sites: Sequence[Site]) -> list[list[Site]]:
    """The q, k, v and o of all layers' attentions of one name and shape; others are left out.

    Raises ValueError where there are no two such attentions.
    """
    found: dict[object, list[dict[str, Site]]] = defaultdict(list)
    for path, roles in attentions(sites).items():
        shapes = tuple(sorted((role, site.shape) for role, site in roles.items()))
        found[re.sub(r"\d+", "#", path), shapes].append(roles)
    groups = [
        [site for roles in layers for site in roles.values()]
        for layers in found.values()
        if len(layers) > 1
    ]
    if not groups:
        raise ValueError(
            "no two layers have targeted q, k, v or o projections of one shape, apart from each "
            "other: this method shares heads between layers; use another one for this model"
        )
    return groups


def transposed_pairs(sites: Sequence[Site]) -> list[list[Site]]:
    """The up and the down projection of each feed-forward part in one group; others stay alone.

    Raises ValueError where there is no such pair.
    """
    pairs = [
        [up, down]
        for part in channels(sites)
        if part.part == "mlp"
        for up in part.makers
        for down in part.readers
        if up.role == "up" and up.shape == down.shape[::-1]
    ]
    if not pairs:
        raise ValueError(
            "no up and down projection of transposed shapes stand together among the targets: "
            "name both, as targets=['up_proj', 'down_proj'] or by the roles 'mlp'"
        )
    paired = {site.name for pair in pairs for site in pair}
    return pairs + [[site] for site in sites if site.name not in paired]
