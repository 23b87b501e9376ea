"""Continual learning: each task adds a few ranks to those of the tasks before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import SiteError
from ..models import Site
from ..operators import LowRank, Operator, Sum
from ..registry import Adaptation, Paper, method
from ..rewrites import Rewrite
from ..rewrites.adapting import leaf_dtype, require_rank, trains, zeros
from .lora import ADAPTER


@method(
    Paper(
        "Incremental Task Learning with Incremental Rank Updates",
        "2207.09074",
        "the authors' notebook for an MLP; the paper's equations were not read",
        "the ranks stand beside a pretrained W, where the paper has nothing else; so the selector "
        "starts at zero, which leaves W's function, where the paper starts the new ranks' at one; "
        "a convolution is factored as a matrix; heads and biases are the user's modules_to_save",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=lambda w, p, **_: w + (p["b"] * p["gate"]) @ p["a"],
)
def incremental_rank(rank: int = 11, added: int = 1, after: str | None = None) -> Adaptation:
    """U diag(selector) V with `rank` ranks for the first task, and `added` for each later one.

    A later task's adapter names the one before it: adapt(..., name="b", after="a"). It holds the
    earlier tasks' ranks, frozen and shared, with a selector of its own over all of them, and
    changes nothing of the earlier tasks: `corank.adapters.activate` chooses the task.
    """
    fresh = rank if after is None else added

    def earlier(site: Site) -> list[LowRank]:
        if after is None:
            return []
        found = [m for m in _modules(site.earlier.get(after)) if isinstance(m, LowRank)]
        if not found or any(low.gate is None for low in found):
            have = ", ".join(sorted(site.earlier)) or "none"
            raise SiteError(
                site.where, f"it carries no task {after!r} of incremental_rank (has: {have})",
                "Give after= the adapter of the task before, and the same targets.",
            )  # fmt: skip
        return found

    def rewrite(op: Operator, site: Site) -> Operator:
        require_rank(fresh, site)
        out, into = op.shape
        held = [
            LowRank(low.b.requires_grad_(False), low.a.requires_grad_(False), zeros(op, low.rank))
            for low in earlier(site)
        ]
        b, a = _orthogonal(op, site, out, fresh), _orthogonal(op, site, into, fresh)
        new = LowRank(trains(b), trains(a.mT.contiguous()), zeros(op, fresh))
        return Sum(op, *held, new)

    def count(sites: Sequence[Site]) -> int:
        selectors = sum(low.rank for site in sites for low in earlier(site))
        return selectors + sum(fresh * (sum(site.shape) + 1) for site in sites)

    def frozen(sites: Sequence[Site]) -> int:
        return sum(low.rank * sum(site.shape) for site in sites for low in earlier(site))

    return Adaptation(Rewrite(rewrite), count, frozen)


def _modules(op: Operator | None) -> list[torch.nn.Module]:
    return [] if op is None else list(op.modules())


def _orthogonal(op: Operator, site: Site, length: int, rank: int) -> torch.Tensor:
    drawn = torch.randn(length, rank, generator=site.draws(), dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.to(op.device, leaf_dtype(op))
