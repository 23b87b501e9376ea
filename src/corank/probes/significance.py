"""What quantising each weight costs, by an integral, and which weights to spare for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..calibration import Batches, Loss
from ..calibration.path import path_gradients
from ..models import Site, read
from ..quantizers import Quantizer
from ..rewrites.detached import OUTLIERS, SIGNIFICANT, detach

#: Shares of a site to try, times the share that all sites have together.
_SHARES = (0.0, 0.5, 1.0, 2.0, 4.0)


@torch.no_grad()
def choose_detached(
    model: nn.Module,
    sites: Sequence[Site],
    data: Batches,
    loss: Loss | None,
    quantizer: Quantizer,
    shares: tuple[float, float],
    points: int,
    steps: int,
) -> None:
    """Leave in each site's statistics the flat indices of its outliers and significant weights.

    The outliers are the largest weights of a site. How many, so that together they are the first of
    `shares` of all weights, is where they spare most of sum |g| |W' - W|, g the loss's gradient
    along the way to the quantised W'. The significant ones are the second share, in `steps` equal
    parts: those whose integral, g (W' - W) for the W' of the step, is largest over all sites.
    """
    weights = {site.name: read(model, site).dense().detach() for site in sites}
    by_name = {site.name: site for site in sites}

    def spared(name: str, places: Tensor) -> Tensor:
        return detach(
            weights[name], places, len(places), lambda w: quantizer(w, by_name[name])
        ).dense()  # fmt: skip

    none = torch.zeros(0, dtype=torch.long)
    ends = {name: spared(name, none.to(w.device)) for name, w in weights.items()}
    slopes = path_gradients(model, sites, ends, data, points, loss)
    total = sum(expected(site, shares) for site in sites)
    chosen, ends = _outliers(weights, slopes, spared, shares[0])
    left = total - sum(len(places) for places in chosen.values())
    found: dict[str, list[Tensor]] = {name: [] for name in weights}
    for step in range(steps, 0, -1):
        slopes = path_gradients(model, sites, ends, data, points, loss)
        costs = {name: slopes[name] * (ends[name] - w) for name, w in weights.items()}
        for name, places in chosen.items():
            _mask(costs[name], torch.cat([places, *found[name]]))
        for name, places in _largest(costs, -(-left // step)).items():
            found[name].append(places)
            flat = ends[name] = ends[name].clone()
            flat.view(-1)[places] = weights[name].flatten()[places]
            left -= len(places)
    for site in sites:
        site.stats[OUTLIERS] = chosen[site.name]
        site.stats[SIGNIFICANT] = torch.cat([chosen[site.name][:0], *found[site.name]])


def expected(site: Site, shares: tuple[float, float]) -> int:
    """How many numbers of a site are detached where no site has more than its share."""
    return sum(int(share * site.numel) for share in shares)


def _outliers(
    weights: Mapping[str, Tensor],
    slopes: Mapping[str, Tensor],
    spared: Callable[[str, Tensor], Tensor],
    share: float,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The outliers' places and the weights with them spared, site by site."""
    counts, errors, ranked = {}, {}, {}
    for name, weight in weights.items():
        counts[name] = [int(min(1.0, times * share) * weight.numel()) for times in _SHARES]
        ranked[name] = weight.abs().flatten().topk(counts[name][-1]).indices
        errors[name] = [
            float((slopes[name] * (spared(name, ranked[name][:n]) - weight)).abs().sum())
            for n in counts[name]
        ]
    levels = _greedy(counts, errors, sum(int(share * w.numel()) for w in weights.values()))
    chosen = {name: ranked[name][: counts[name][levels[name]]] for name in weights}
    return chosen, {name: spared(name, places) for name, places in chosen.items()}


def _greedy(
    counts: Mapping[str, list[int]], errors: Mapping[str, list[float]], budget: int
) -> dict[str, int]:
    """A level for each name, by what each further place spares, within `budget` places."""
    levels = dict.fromkeys(counts, 0)
    while True:
        best: tuple[float, str, int] = (0.0, "", 0)
        for name, at in levels.items():
            for level in range(at + 1, len(counts[name])):
                more = counts[name][level] - counts[name][at]
                if 0 < more <= budget:
                    gain = (errors[name][at] - errors[name][level]) / more
                    best = max(best, (gain, name, level))
        gain, name, level = best
        if gain <= 0:
            return levels
        budget -= counts[name][level] - counts[name][levels[name]]
        levels[name] = level


def _mask(costs: Tensor, places: Tensor) -> None:
    costs.view(-1)[places.to(costs.device)] = -torch.inf


def _largest(costs: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The places of the `count` largest costs over all sites, in each site the largest first."""
    tops = {name: cost.flatten().topk(min(count, cost.numel())) for name, cost in costs.items()}
    values = torch.cat([top.values.cpu() for top in tops.values()])
    taken = torch.zeros(len(values), dtype=torch.bool)
    taken[values.topk(count).indices] = True
    parts = taken.split([len(top.values) for top in tops.values()])
    return {
        name: top.indices[part.to(top.indices.device)]
        for (name, top), part in zip(tops.items(), parts, strict=True)
    }
