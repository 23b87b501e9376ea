"""Choosing adapters by a few labelled samples, and mixing the chosen ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..adapters import activate, active
from ..adapters.record import Adapter, adapted, find_adapter
from ..engine.adapting import add_adapter
from ..errors import SiteError
from ..io import attach
from ..models import Site, read
from ..operators import Dense, LowRank, Operator, Routed, Scaled, Sum, additions
from ..registry import Adaptation
from ..rewrites import Rewrite
from ..rewrites.adapting import kaiming

Factors = Mapping[str, tuple[Tensor, Tensor]]  # site -> b (out, r), a (r, in)


@torch.no_grad()
def kshot_experts(
    model: nn.Module,
    candidates: Sequence[str],
    examples: Sequence[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    experts: int = 4,
    top_k: int = 2,
    shortlist: int | None = None,
    name: str = "experts",
) -> list[str]:
    """Mix the LoRAs that do best on a few examples and are least alike, as a new adapter.

    candidates: names of LoRA adapters on the model, of one rank and the same sites. examples: the
    K labelled samples, in batches; loss(model, batch) is lower for better answers. Of the
    `shortlist` best (None: twice `experts`), those `experts` are taken whose weights have the
    least cosines between them; each token then goes through the `top_k` that a new router likes.
    Returns the names of the chosen. Raises ValueError (SiteError) for candidates that do not fit.
    """
    if not 1 <= top_k <= experts <= len(set(candidates)) or not examples:
        raise ValueError(
            f"top_k={top_k}, experts={experts} and {len(set(candidates))} candidates must not "
            "fall, and there is at least one example"
        )
    acting = active(model)
    try:
        scores = {c: _loss_with(model, c, examples, loss) for c in dict.fromkeys(candidates)}
    finally:
        activate(model, acting)
    best = sorted(scores, key=lambda c: scores[c])[: max(experts, shortlist or 2 * experts)]
    factors = {c: _factors(model, c) for c in best}
    _require_alike(factors)
    chosen = least_alike(factors, experts)
    _mix(model, chosen, factors, top_k, name)
    return chosen


def least_alike(factors: Mapping[str, Factors], count: int) -> list[str]:
    """The `count` adapters with the least sum of |cosine| over pairs, sites and factors."""
    alike: dict[frozenset[str], float] = {}
    for one, two in combinations(factors, 2):
        pairs = (
            pair
            for site, own in factors[one].items()
            for pair in zip(own, factors[two][site], strict=True)
        )
        cosines = (F.cosine_similarity(p.flatten(), q.flatten(), 0).abs() for p, q in pairs)
        alike[frozenset((one, two))] = float(sum(cosines))
    groups = combinations(factors, count)
    return list(min(groups, key=lambda g: sum(alike[frozenset(p)] for p in combinations(g, 2))))


def _loss_with(model: nn.Module, name: str, examples: Sequence[Any], loss: Any) -> float:
    activate(model, name)
    return sum(float(loss(model, batch)) for batch in examples) / len(examples)


def _factors(model: nn.Module, name: str) -> dict[str, tuple[Tensor, Tensor]]:
    found = {}
    for path, site in find_adapter(model, name).sites.items():
        terms = additions(adapted(model)[path].adapter(name))
        term = terms[0] if terms is not None and len(terms) == 1 else None
        scale, inner = (term.scale, term.operator) if isinstance(term, Scaled) else (1.0, term)
        if not isinstance(inner, LowRank):
            raise SiteError(
                site.where, f"adapter {name!r} is no LoRA there", "Give adapters made by lora."
            )
        b, a = inner.factors()
        found[path] = (scale * b, a)
    return found


def _require_alike(factors: Mapping[str, Factors]) -> None:
    shapes = {c: {p: tuple(a.shape) for p, (_, a) in own.items()} for c, own in factors.items()}
    first, *others = shapes
    for other in others:
        if shapes[other] != shapes[first]:
            raise ValueError(
                f"adapters {first!r} and {other!r} differ in rank or in their sites: experts must "
                "be alike"
            )


def _mix(
    model: nn.Module,
    chosen: Sequence[str],
    factors: Mapping[str, Factors],
    top_k: int,
    name: str,
) -> None:
    first = find_adapter(model, chosen[0])
    rank = next(iter(factors[chosen[0]].values()))[1].shape[0]

    def rewrite(op: Operator, site: Site) -> Operator:
        pairs = [factors[c][site.name] for c in chosen]
        b = torch.cat([b for b, _ in pairs], 1)
        a = torch.cat([a for _, a in pairs])
        router = Dense(kaiming(op, site, len(chosen), op.shape[1]))
        return Sum(op, Routed(nn.Parameter(b.clone()), nn.Parameter(a.clone()), router, top_k))

    def count(sites: Sequence[Site]) -> int:
        return len(chosen) * sum(rank * sum(s.shape) + s.shape[1] for s in sites)

    recipe = Adaptation(Rewrite(rewrite), count)
    held = Adapter(
        name, "kshot_experts", {"experts": list(chosen), "top_k": top_k}, list(first.sites),
        first.seed, sites=dict(first.sites), recipe=recipe,
    )  # fmt: skip
    sites = first.sites.values()
    add_adapter(
        model, held, {s.name: read(model, s) for s in sites}, dict.fromkeys(first.sites, recipe)
    )
    attach(model)
