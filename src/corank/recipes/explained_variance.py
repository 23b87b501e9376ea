"""EVA: LoRA from the directions that explain the inputs, read until they settle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..calibration.inputs import Watch
from ..linalg import about_mean, principal_components
from ..models import Site
from ..operators import LowRank, Operator, Scaled, Sum
from ..registry import Adaptation, Paper, method
from ..rewrites import Rewrite
from ..rewrites.adapting import leaf_dtype, require_rank, trains, zeros
from .counts import low_rank


def _eva(w: Tensor, p: dict[str, Tensor], rank: int = 16, alpha: float = 16.0, **_: Any) -> Tensor:
    return w + alpha / rank * p["b"] @ p["a"]


@method(
    Paper(
        "Parameter Efficient Fine-tuning via Explained Variance Adaptation",
        "2410.07170",
        "the initialisation, its test of convergence and the redistribution of ranks, as in PEFT "
        "and the authors' code; the paper's equations were not read",
        "the components are those of the running covariance, where the incremental decomposition "
        "truncates it after each batch; a site that has converged stays so when a later batch of "
        "the others gives it a larger rank; the data is read once at most, where PEFT cycles "
        "through it until all have converged; tokens without a label count",
    ),
    area="adapt",
    laws=("adapter", "preserves", "chooses"),
    equation=_eva,
)
def eva(
    rank: int = 16,
    alpha: float = 16.0,
    rho: float = 2.0,
    tau: float | None = 0.99,
    whiten: bool = False,
) -> Adaptation:
    """LoRA with a started at the principal components of the inputs, ranks where they explain most.

    The ranks of all sites add up to `rank` each, at most rank * rho at one, and go to the
    components with the largest shares of their input's variance; a site that gets none gets no
    adapter. The factor stays alpha / rank. A dry run counts as if all kept `rank`.
    tau: data is read until no component moved to a cosine below it in a batch; None reads all.
    whiten: divide each component by the root of its singular value.
    """
    if not rho >= 1:
        raise ValueError(f"rho must be at least 1, got {rho}")
    if tau is not None and not 0 < tau <= 1:
        raise ValueError(f"tau must be above 0 and at most 1, or None to read all, got {tau}")

    def prepare(sites: Sequence[Site], ops: Sequence[Operator]) -> Sequence[Site]:
        found = {}
        for site in sites:
            require_rank(rank, site)
            site.stat("mean")
            site.stat("gram")
            found[site.name] = _components(site.stats, min(round(rank * rho), *site.shape))
        ranks = _ranks({name: shares for name, (shares, _) in found.items()}, rank)
        kept = [site for site in sites if ranks[site.name]]
        for site in kept:
            count = ranks[site.name]
            shares, a = found[site.name][0][:count], found[site.name][1][:, :count]
            if whiten:
                a = a / (shares * _total(site.stats) * site.stats["tokens"]) ** 0.25
            site.pool[f"eva {site.name}"] = a.mT
        return kept

    def rewrite(op: Operator, site: Site) -> Operator:
        a = site.pool[f"eva {site.name}"].to(op.device, leaf_dtype(op)).contiguous()
        added = LowRank(zeros(op, op.shape[0], a.shape[0]), trains(a))
        return Sum(op, Scaled(added, alpha / rank))

    return Adaptation(
        Rewrite(rewrite, frozenset({"gram", "mean"})),
        low_rank(rank),
        prepare=prepare,
        watch=None if tau is None else partial(_until_settled, tau, rank, round(rank * rho)),
    )


def _until_settled(tau: float, rank: int, most: int) -> Watch:
    """A look at the directions after each batch: where those that a site gets moved no more."""
    known: dict[str, tuple[Tensor, Tensor]] = {}
    settled: set[str] = set()

    def look(found: Mapping[str, Mapping[str, Any]]) -> set[str]:
        moved: dict[str, Tensor] = {}
        made: dict[int, tuple[Tensor, Tensor]] = {}  # once for sites that share an input
        for name, stats in found.items():
            if name in settled or "gram" not in stats:
                continue
            if id(stats) not in made:
                made[id(stats)] = _components(stats, most)
            before, known[name] = known.get(name), made[id(stats)]
            if before is not None:
                moved[name] = torch.linalg.vecdot(before[1].mT, known[name][1].mT).abs()
        ranks = _ranks({name: shares for name, (shares, _) in known.items()}, rank)
        settled.update(n for n, cosine in moved.items() if (cosine[: ranks[n]] >= tau).all())
        return settled

    return look


def _covariance(stats: Mapping[str, Any]) -> Tensor:
    return about_mean(stats["gram"].double(), stats["mean"].double())


def _total(stats: Mapping[str, Any]) -> Tensor:
    return _covariance(stats).diagonal().sum().clamp_min(1e-30)


def _components(stats: Mapping[str, Any], count: int) -> tuple[Tensor, Tensor]:
    """The largest shares of the input's variance (count,), and their directions (n, count)."""
    covariance = _covariance(stats)
    values, vectors = principal_components(covariance, min(count, covariance.shape[0]))
    return values.clamp_min(0) / _total(stats), vectors


def _ranks(shares: Mapping[str, Tensor], rank: int) -> Counter[str]:
    """How many of the largest shares, `rank` for each site, are a site's."""
    every = [(float(share), name) for name, found in shares.items() for share in found]
    every.sort(key=lambda one: -one[0])
    return Counter(name for _, name in every[: rank * len(shares)])
