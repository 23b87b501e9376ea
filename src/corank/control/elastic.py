"""Ranks that change from step to step, so that one training serves many ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from ..models import Site
from .control import Training
from .ranks import truncate


def draw_rank(training: Training, share: bool, space: Sequence[int] | None = None) -> None:
    """Let a random rank act from now on: one for all sites, or one for each of their groups.

    space: the ranks to draw from, uniformly; by default 1 to each site's own.
    """
    groups = [list(training.operators)] if share else rank_groups(training.sites.values())
    products = {site: training.low_ranks_of(site)[0] for site in training.operators}
    drawn: dict[str, int] = {}
    for group in groups:
        most = max(products[site].rank for site in group)
        choices = list(range(1, most + 1)) if space is None else list(space)
        index = int(torch.randint(len(choices), (), generator=training.generator))
        drawn |= {site: min(choices[index], products[site].rank) for site in group}
    training.memory["ranks"] = drawn
    act_as_drawn(training)


def full_rank(training: Training) -> None:
    """Let every rank act again."""
    products = {site: training.low_ranks_of(site)[0] for site in training.operators}
    training.memory["ranks"] = {site: op.rank for site, op in products.items()}
    act_as_drawn(training)


def act_as_drawn(training: Training) -> None:
    """Let those ranks act that are remembered."""
    for site, rank in training.memory.get("ranks", {}).items():
        truncate(training.low_ranks_of(site)[0], rank)


def rank_groups(sites: Iterable[Site]) -> list[list[str]]:
    """Sites that share a rank: query, key and value of a block together, every other alone."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for site in sites:
        together = site.role in ("q", "k", "v") and site.layer is not None
        path = site.name.rpartition(".")[0]
        groups.setdefault((site.layer, path) if together else (site.name,), []).append(site.name)
    return list(groups.values())
