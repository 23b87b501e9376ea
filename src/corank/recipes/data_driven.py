"""Adapters whose start follows from calibration data."""

from __future__ import annotations

import torch
from torch import Tensor

from ..linalg import add_ridge, eigh_clamped, exact_svd
from ..models import Site
from ..operators import LowRank, Operator
from ..registry import Adaptation, Paper, method
from ..rewrites import Triples, cut, rooted, split, wide
from ..rewrites.adapting import require_rank, trains
from .counts import each, low_rank

ADAPTER = ("adapter", "preserves")
_BESIDE = "the start b0 a0 is held frozen beside W in place of a residual"


def _swapped(w: Tensor, p: dict[str, Tensor], **_: object) -> Tensor:
    return w - p["b"] @ p["a"] + p["b_1"] @ p["a_1"]


@method(
    Paper(
        "CorDA: Context-Oriented Decomposition Adaptation of Large Language Models",
        "2406.05223",
        "both modes, as in PEFT and the authors' code; the paper's equations were not read",
        f"{_BESIDE}; the covariance is over tokens, scaled to a mean diagonal of 1, where the code "
        "divides each sample by its largest entry: the scale moves size from one factor to the "
        "other; the damping stays at 1% of the mean, which the code doubles until its float32 "
        "inverse is accurate: here it is float64's",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=_swapped,
)
def corda(rank: int = 128, mode: str = "ipm") -> Adaptation:
    """Triples of W C train, C the second moment of the inputs, taken back through C's inverse.

    mode: "ipm" (instruction previewed) trains the largest, from the data to be learned; "kpm"
    (knowledge preserved) the smallest, from data whose knowledge is to stay.
    """
    if mode not in ("ipm", "kpm"):
        raise ValueError(f"mode must be 'ipm' or 'kpm', got {mode!r}")

    def oriented(op: Operator, site: Site) -> LowRank:
        require_rank(rank, site)
        w = wide(op)
        c = add_ridge(site.stat("gram").to(w.device, torch.float64), 0.01)
        c = c / c.diagonal().mean()
        triples = Triples(*exact_svd(w.double() @ c)[:3])
        first = 0 if mode == "ipm" else triples.s.shape[0] - rank
        b, a = rooted(cut(triples, first, first + rank))
        back = torch.linalg.solve(c, a.mT).mT  # a C^-1, as C is symmetric
        return LowRank(trains(b.to(w)), trains(back.to(w)))

    return Adaptation(split(oriented, frozenset({"gram"})), low_rank(rank), low_rank(rank))


@method(
    Paper(
        "KORE: Enhancing Knowledge Injection for Large Multimodal Models via Knowledge-Oriented "
        "Augmentations and Constraints",
        "2510.19316",
        "the constraint, as in the authors' code; the paper's equations were not read",
        f"{_BESIDE}; the covariance is over tokens, not over samples that are divided by their "
        "largest entry first; the augmentation makes data, and is not part of the adapter; a "
        "layer's bias stays frozen, which the code trains",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=lambda w, p, **_: w + (p["b_1"] - p["b"]) @ p["a"],
)
def kore(rank: int = 235) -> Adaptation:
    """W seen from where old inputs hardly reach trains: only what it makes of those directions.

    The directions are the `rank` eigenvectors of the inputs' second moment with the smallest
    values; calibrate on data whose knowledge is to stay.
    """

    def unseen(op: Operator, site: Site) -> LowRank:
        require_rank(rank, site)
        w = wide(op)
        _, vectors = eigh_clamped(site.stat("gram").to(w))
        directions = vectors[:, -rank:]  # (in, r)
        u, s, vh = exact_svd(w @ directions)[:3]
        b, a = rooted(Triples(u, s, vh @ directions.mT))
        return LowRank(trains(b), a)

    return Adaptation(
        split(unseen, frozenset({"gram"})),
        each(lambda out, into: rank * out),
        low_rank(rank),
    )
