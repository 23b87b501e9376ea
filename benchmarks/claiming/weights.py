"""Looking into trained weights: intruder dimensions, and factors cut to fewer ranks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from corank.adapters import adapted, set_ranks
from corank.models import find_sites
from corank.operators import LowRank

LEADING, THRESHOLD = 10, 0.5


@torch.no_grad()
def count_intruders(before: Tensor, after: Tensor) -> int:
    """How many of the leading left singular vectors of `after` resemble none of `before`'s:
    their largest |cosine| is below the threshold."""
    u, v = (torch.linalg.svd(w.double(), full_matrices=False)[0] for w in (before, after))
    return int(((u.mT @ v[:, :LEADING]).abs().amax(0) < THRESHOLD).sum())


def mean_intruders(original: nn.Module, model: nn.Module, targets: object) -> float:
    """The mean number of intruder dimensions per matrix, of those well above 10 ranks."""
    counts = [count_intruders(*pair) for pair in _pairs(original, model, targets)]
    return sum(counts) / len(counts)


def _pairs(
    original: nn.Module, model: nn.Module, targets: object
) -> Iterator[tuple[Tensor, Tensor]]:
    weights = adapted(model)
    now = {} if weights else {site.name: site for site in find_sites(model, targets)}
    for site in find_sites(original, targets):
        if min(site.shape) < 4 * LEADING:
            continue
        before = original.get_submodule(site.name).weight.flatten(1)
        if weights:
            yield before, weights[site.name].view.dense()
        else:
            assert site.name in now
            yield before, model.get_submodule(site.name).weight.flatten(1)


@torch.no_grad()
def cut_ranks(model: nn.Module, rank: int, best: bool) -> None:
    """Keep `rank` of every adapter's b a, in place: the first ones, or the best (by an SVD).

    What was trained for every rank goes to its first ones with the scale of that rank.
    """
    found = [(w, op) for w in adapted(model).values() for op in _products(w)]
    if any(op.gate is not None for _, op in found):
        set_ranks(model, rank)
        return
    for weight, op in found:
        if best:
            u, s, vh = torch.linalg.svd(op.b @ op.a, full_matrices=False)
            ranks = op.b.shape[1]
            op.b.copy_(u[:, :ranks] * s[:ranks])
            op.a.copy_(vh[:ranks])
        op.b[:, rank:] = 0
        weight.refresh()


def _products(weight: nn.Module) -> list[LowRank]:
    return [op for op in weight.modules() if isinstance(op, LowRank)]
