"""How much a unit's error matters, measured on the model itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..calibration import Batches
from ..calibration.outputs import outputs
from ..linalg import about_mean
from ..models import blocks, install_together, read_biases, snapshot
from ..rewrites import Family
from .candidate import Candidate
from .shares import uniform

#: Batches on which sensitivity is measured.
SENSED = 16


@torch.no_grad()
def by_sensitivity(
    model: nn.Module,
    candidates: list[Candidate],
    family: Family,
    batches: Batches,
    budget: int,
) -> list[float]:
    """What the model's output loses when one unit alone is cut to the uniform share.

    The weight is that squared output error per unit of the metric's own error, so that weight
    times error predicts the output's error. One forward pass for each unit, over `SENSED` of the
    batches, evenly spaced among them where there are more.
    """
    batches = Batches(batches[:: -(-len(batches) // SENSED)])
    before = outputs(model, batches)
    weights = []
    for candidate, pick in zip(candidates, uniform(candidates, budget), strict=True):
        size, error = candidate.menu.sizes[pick], candidate.menu.errors[pick]
        if size is None or error == 0:
            weights.append(1.0)
            continue
        sites = candidate.unit.sites
        undo = snapshot(model, sites)
        made = family.build(candidate.unit, size)
        biases = read_biases(model, sites)
        joint = family.jointly(candidate.unit, made, biases)
        install_together(model, sites, made, biases if joint is None else joint[0])
        after = outputs(model, batches)
        undo()
        change = sum(float((a - b).square().sum()) for a, b in zip(after, before, strict=True))
        weights.append(change / error)
    return weights


@torch.no_grad()
def by_size(candidates: list[Candidate], family: Family) -> list[float]:
    """One over the error of a weight that is gone, so that errors of unlike sites compare.

    Where the inputs' mean is known, over that about the mean: what is the same for all inputs tells
    nothing of them, however large it is.
    """
    weights = []
    for candidate in candidates:
        unit = candidate.unit
        losses = [
            family.of(site).measure(_about_the_mean(site.stats)).loss(op.dense().detach().float())
            for site, op in zip(unit.sites, unit.ops, strict=True)
        ]
        whole = float(sum(losses))
        weights.append(1 / whole if whole > 0 else 1.0)
    return weights


def _about_the_mean(stats: dict[str, Any]) -> dict[str, Any]:
    """The statistics of x - E[x], where moments and mean are known."""
    if "mean" not in stats:
        return stats
    mean, found = stats["mean"], dict(stats)
    if "gram" in stats:
        found["gram"] = about_mean(stats["gram"], mean)
    if "square_mean" in stats:
        found["square_mean"] = about_mean(stats["square_mean"], mean)
    return found


@torch.no_grad()
def by_influence(model: nn.Module, candidates: list[Candidate], batches: Batches) -> list[float]:
    """1 - E[cos(x_in, x_out)] of the block that each unit lies in (ShortGPT, arXiv 2403.03853)."""
    sums: dict[str, list[float]] = {name: [0.0, 0.0] for name, _ in blocks(model)}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            x = args[0] if args else kwargs["hidden_states"]
            y = output[0] if isinstance(output, tuple) else output
            cosine = torch.cosine_similarity(x.float(), y.float(), dim=-1)
            sums[name][0] += float((1 - cosine).sum())
            sums[name][1] += cosine.numel()

        return hook

    handles = [
        block.register_forward_hook(watch(name), with_kwargs=True) for name, block in blocks(model)
    ]
    try:
        outputs(model, batches)
    finally:
        for handle in handles:
            handle.remove()
    influence = {name: total / count for name, (total, count) in sums.items() if count}
    return [
        next((s for n, s in influence.items() if c.unit.sites[0].name.startswith(n + ".")), 1.0)
        for c in candidates
    ]
