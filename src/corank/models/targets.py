"""Which sites a method is to work on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import nn

from ..errors import SiteError, unknown
from .finding import survey
from .kinds import Refused
from .roles import ATTENTION, MLP
from .site import Site

Targets: TypeAlias = "str | Sequence[str] | Mapping[str, Mapping[str, Any] | None]"

#: Roles that "all-linear" leaves out, as PEFT leaves out heads; a router decides, it does not map.
_NOT_LINEAR = frozenset({"head", "embed", "router"})
_GROUPS = ("all-linear", "attention", "mlp", "all")


def find_sites(
    model: nn.Module, targets: Targets = "all-linear", seed: int = 0, foreign: bool = False
) -> list[Site]:
    """The targeted sites of a model, in model order, sharing one fresh pool.

    targets: "all-linear" (linear layers, transformers' Conv1D and experts, but no head, embedding
        or router), "attention", "mlp", "all", one or more name endings as in PEFT ("q_proj",
        "mlp.down_proj"), "re:..." for a regular expression over the full name, or a dict from any
        of these to that target's overrides (None skips it; a later key wins).

    foreign: take quantised linear layers of other libraries too, for adapters.

    A tied weight is found under each of its names. Raises ValueError for a target that matches
    nothing, with the nearest names; SiteError where a target names a weight that is refused.
    """
    return choose_sites(*survey(model, seed, foreign), targets)


def choose_sites(sites: list[Site], refused: list[Refused], targets: Targets) -> list[Site]:
    """Those of a survey's sites that `targets` names; see `find_sites`."""
    if isinstance(targets, Mapping):
        chosen: dict[str, Mapping[str, Any]] = {}
        for target, overrides in targets.items():
            for site in _matching(target, sites, refused):
                chosen.pop(site.name, None)
                if overrides is not None:
                    chosen[site.name] = overrides
        for site in sites:
            site.overrides = chosen.get(site.name, {})
        return [site for site in sites if site.name in chosen]
    wanted = [targets] if isinstance(targets, str) else list(targets)
    names = {site.name for target in wanted for site in _matching(target, sites, refused)}
    return [site for site in sites if site.name in names]


def require_sites(sites: list[Site], refused: list[Refused]) -> list[Site]:
    """The sites, of which there are some; else ValueError, with what was refused."""
    if not sites:
        reasons = [f"{one.name}: {one.reason}" for one in refused][:3]
        why = "; ".join(["no targeted weight can be rewritten", *reasons])
        raise ValueError(f"{why}. Name other targets; corank.models.survey lists them all")
    return sites


def in_layers(sites: list[Site], layers: Sequence[int] | None) -> list[Site]:
    """Those of the sites that stand in these blocks; None means all.

    Raises ValueError for a block in which none stands, and where none is left.
    """
    if layers is not None:
        there = sorted({s.layer for s in sites if s.layer is not None})
        missing = sorted(set(layers) - set(there))
        if missing:
            raise ValueError(f"no targeted site is in layer {missing}: they are in {there}")
        sites = [s for s in sites if s.layer in set(layers)]
    if not sites:
        raise ValueError("no site was targeted: see corank.models.find_sites")
    return sites


def _matching(target: str, sites: list[Site], refused: list[Refused]) -> list[Site]:
    if target in _GROUPS:
        return [site for site in sites if _in_group(site, target)]
    if target.startswith("re:"):
        found = [site for site in sites if any(re.search(target[3:], n) for n in _names(site))]
    else:
        found = [site for site in sites if any(_ends_with(n, target) for n in _names(site))]
    if found:
        return found
    for refusal in refused:
        if _ends_with(refusal.name, target):
            raise SiteError(refusal.name, refusal.reason, "Leave it out of the targets.")
    raise unknown("target", target, {*_GROUPS, *_endings(sites)})


def _in_group(site: Site, group: str) -> bool:
    if group == "attention":
        return site.role in ATTENTION
    if group == "mlp":
        return site.role in MLP
    linear = site.kind in {"linear", "conv1d_transposed", "expert"}
    return group == "all" or (linear and site.role not in _NOT_LINEAR)


def _names(site: Site) -> tuple[str, ...]:
    """All the site answers to: an expert's also without its number, a tied one's other paths."""
    parts = (site.name.rpartition(".")[0],) if site.kind == "expert" else ()
    return (site.name, *parts, *site.tied)


def _ends_with(name: str, ending: str) -> bool:
    return name == ending or name.endswith("." + ending)


def _endings(sites: Iterable[Site]) -> set[str]:
    names = (name for site in sites for name in _names(site))
    return {name.rpartition(".")[2] for name in names} - {str(i) for i in range(len(list(sites)))}
