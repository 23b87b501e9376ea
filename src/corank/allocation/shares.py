"""Allocators that give each unit a share of the budget by a formula."""

from __future__ import annotations

import math
from collections import defaultdict

from .candidate import Candidate, cost, require_affordable

#: What v and o get of a budget for what q and k get.
_ATTENTION = {"q": 1.0, "k": 1.0, "v": 3.0, "o": 3.0}


def uniform(candidates: list[Candidate], budget: int) -> list[int]:
    """The same share of every unit."""
    keep = budget / sum(c.bytes for c in candidates)
    return by_share(candidates, [keep] * len(candidates), budget)


def svd_llm_v2(candidates: list[Candidate], budget: int) -> list[int]:
    """Within each type of matrix, remove in proportion to 1 / log(loss).

    The loss of a unit is its truncation loss at the uniform share, a Frobenius norm over all
    calibration tokens (SVD-LLM v2, arXiv 2503.12340, algorithm 1). The rule needs losses above
    one, so 1 + loss stands in the logarithm.
    """
    removed = 1 - budget / sum(c.bytes for c in candidates)
    reference = uniform(candidates, budget)
    types: dict[str, list[int]] = defaultdict(list)
    for i, c in enumerate(candidates):
        types[c.unit.sites[0].role].append(i)
    shares = [1.0] * len(candidates)
    for members in types.values():
        weights = {i: 1 / math.log(math.e + _loss(candidates[i], reference[i])) for i in members}
        for i in members:
            shares[i] = 1 - len(members) * removed * weights[i] / sum(weights.values())
    return by_share(candidates, shares, budget)


def _loss(candidate: Candidate, pick: int) -> float:
    tokens = float(candidate.unit.sites[0].stats.get("tokens", 1.0))
    return math.sqrt(tokens * candidate.error[pick])


def block_influence(
    candidates: list[Candidate], budget: int, temperature: float = 0.1
) -> list[int]:
    """Remove from layer l in proportion to softmax(-s_l / temperature), s_l its block's influence.

    The influence, 1 - E[cos(block input, block output)], is each candidate's weight (MoDeGPT,
    arXiv 2408.09632, section 3.3). Units outside the blocks have weight 1 and are hardly cut.
    """
    removed = 1 - budget / sum(c.bytes for c in candidates)
    scores = _scores(candidates, temperature)
    mean = sum(s * c.bytes for s, c in zip(scores, candidates, strict=True))
    mean /= sum(c.bytes for c in candidates)
    return by_share(candidates, [1 - removed * s / mean for s in scores], budget)


def uniql(
    candidates: list[Candidate], budget: int, temperature: float = 0.1, most: float = 0.85
) -> list[int]:
    """As `block_influence`, but no unit loses more than `most` while others can lose more.

    The authors' code of UniQL cuts at 0.85 and leaves the rest of the budget unspent; here the
    other units give it, in the same proportion.
    """
    removed = sum(c.bytes for c in candidates) - budget
    shares = _in_proportion(candidates, _scores(candidates, temperature), removed, most)
    return by_share(candidates, [1 - share for share in shares], budget)


def _scores(candidates: list[Candidate], temperature: float) -> list[float]:
    return [math.exp(-c.weight / temperature) for c in candidates]


def lorap(candidates: list[Candidate], budget: int) -> list[int]:
    """The same share of every unit, but among q, k, v and o three times as much for v and o.

    Where v and o would get more than they have, they stay as they are and q and k get the rest
    (LoRAP, arXiv 2404.09695, the authors' code).
    """
    keep = budget / sum(c.bytes for c in candidates)
    attention = [c for c in candidates if c.unit.sites[0].role in _ATTENTION]
    weights = [_ATTENTION[c.unit.sites[0].role] for c in attention]
    room = keep * sum(c.bytes for c in attention)
    of_attention = iter(_in_proportion(attention, weights, room))
    shares = [
        next(of_attention) if c.unit.sites[0].role in _ATTENTION else keep for c in candidates
    ]
    return by_share(candidates, shares, budget)


def _in_proportion(
    candidates: list[Candidate], weights: list[float], total: float, most: float = 1.0
) -> list[float]:
    """Shares as the weights are, none above `most`, that together come to `total` bytes."""

    def shares(scale: float) -> list[float]:
        return [min(scale * weight, most) for weight in weights]

    low, high = 0.0, most / max(min(weights, default=1.0), 1e-30)
    for _ in range(200):
        middle = (low + high) / 2
        taken = sum(s * c.bytes for s, c in zip(shares(middle), candidates, strict=True))
        low, high = (middle, high) if taken <= total else (low, middle)
    return shares(low)


def by_share(candidates: list[Candidate], shares: list[float], budget: int) -> list[int]:
    """For each unit the largest choice within its share of its own size.

    Shares are clipped to [0, 1] and then moved together, by bisection, until the budget is met
    from below; a unit whose share buys nothing gets its smallest choice.
    """
    require_affordable(candidates, budget)

    def picks(shift: float) -> list[int]:
        return [
            c.menu.largest_within(min(max(s + shift, 0.0), 1.0) * c.bytes + 1e-6) or 0
            for c, s in zip(candidates, shares, strict=True)
        ]

    if cost(candidates, picks(0.0)) <= budget and all(0 <= s <= 1 for s in shares):
        return picks(0.0)
    low, high = -1.0 - max(shares), 1.0 - min(shares)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(candidates, picks(middle)) <= budget else (low, middle)
    return picks(low)
