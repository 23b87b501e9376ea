"""Adapters that train the singular values of a weight and keep its singular vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ..control import Training, vector_freezing
from ..linalg import rank_by_energy
from ..models import Site, read_bias
from ..operators import Dense, Diagonal, Entrywise, LowRank, Operator, Product, Scaled, Sum
from ..registry import Adaptation, Paper, method
from ..rewrites import Rewrite, Triples, all_triples, cut, leading, plus
from ..rewrites.adapting import zeros
from .counts import each

ADAPTER = ("adapter", "preserves")
_OFFSETS = "the offsets from the singular values train, the same but for weight decay"


def _offsets(w: Tensor, p: dict[str, Tensor], **_: object) -> Tensor:
    return w + p["b"] @ p["gate"].diag() @ p["a"]


def _shifted(op: Operator, triples: Triples) -> LowRank:
    """u diag(d) vh, d zero and trainable."""
    return LowRank(triples.u, triples.vh, zeros(op, triples.s.shape[0]))


@method(
    Paper(
        "SVFit: Parameter-Efficient Fine-Tuning of Large Pre-Trained Models Using Singular Values",
        "2409.05926",
        "the parameterisation of the introduction; the equations were not read",
        f"{_OFFSETS}; the 99% of a weight's information that is kept is read as energy, the sum "
        "of squared singular values",
    ),
    area="adapt",
    laws=(*ADAPTER, "chooses"),
    equation=_offsets,
)
def svfit(rank: int | None = None, energy: float = 0.99) -> Adaptation:
    """The leading singular values train: `rank` of them, or as many as hold `energy`.

    Without a rank the count depends on the weights; a dry run then gives its upper bound.
    """
    if not 0 < energy <= 1:
        raise ValueError(f"energy must be in (0, 1], got {energy}")

    def delta(op: Operator, site: Site) -> Operator:
        if rank is not None:
            return _shifted(op, leading(op, site, rank))
        whole = all_triples(op)
        return _shifted(op, cut(whole, 0, rank_by_energy(whole.s, energy)))

    def ranks(out: int, into: int) -> int:
        return min(out, into) if rank is None else rank

    return Adaptation(plus(delta), each(ranks), each(lambda m, n: ranks(m, n) * (m + n)))


def _svdiff(w: Tensor, p: dict[str, Tensor], scale: float = 1.0) -> Tensor:
    values = (p["diagonal"] + scale * p["diagonal_1"]).relu()
    return p["weight"] @ values.diag() @ p["weight_1"]


@method(
    Paper(
        "SVDiff: Compact Parameter Space for Diffusion Fine-Tuning",
        "2303.11305",
        "the spectral shifts; the equation's number was not read",
        "normalisation layers, which hold no matrix, are left alone; the augmentation and the "
        "image editing of the paper are not part of the adapter",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=_svdiff,
)
def svdiff(scale: float = 1.0) -> Adaptation:
    """U diag(max(0, s + scale * d)) V.T: every singular value is shifted, none below zero.

    scale: 1 in training; more or less strengthens or weakens what was learned.
    """

    def rewrite(op: Operator, site: Site) -> Operator:
        u, s, vh = all_triples(op)
        shift = Scaled(Diagonal(zeros(op, s.shape[0])), scale)
        return Product(Dense(u), Entrywise(Sum(Diagonal(s), shift), "relu"), Dense(vh))

    return Adaptation(Rewrite(rewrite), each(min), each(lambda m, n: min(m, n) * (m + n + 1)))


@method(
    Paper(
        "VectorFit: Adaptive Singular & Bias Vector Fine-Tuning of Pre-trained Foundation Models",
        "2503.19530",
        "the authors' README: W = U (S + dS) V^T and b + db train, vectors trained the most are "
        "frozen for a while; no section was read, and no code is published",
        f"{_OFFSETS}; how strength is measured, when vectors are frozen and how many are choices "
        "of this library: the sources name neither formula nor numbers",
    ),
    area="adapt",
    laws=(*ADAPTER, "also"),
    equation=_offsets,
)
def vectorfit(
    warmup: int = 100, interval: int = 50, freeze: int = 5, smoothing: float = 0.99
) -> Adaptation:
    """All singular values and the biases train; vectors that moved the most rest for a while.

    From step `warmup` on, every `interval` steps, the `freeze` vectors (one weight's singular
    values, or one bias) with the largest smoothed mean |v - v0| stop until the next time; 0 lets
    all go on.
    """
    bounds = {"warmup": (warmup, 0), "interval": (interval, 1), "freeze": (freeze, 0)}
    for name, (value, least) in bounds.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")

    def vectors(training: Training) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, op in training.operators.items():
            for leaf_name, leaf in op.named_parameters():
                if leaf.requires_grad:
                    found[f"{name}/{leaf_name}"] = leaf
            bias = read_bias(training.model, training.sites[name])
            if bias is not None:
                found[f"{name}/bias"] = bias
        return found

    def biases(model: nn.Module, sites: Sequence[Site]) -> list[nn.Parameter]:
        found = [read_bias(model, site) for site in sites]
        return [bias for bias in found if isinstance(bias, nn.Parameter)]

    return Adaptation(
        plus(lambda op, site: _shifted(op, all_triples(op))),
        each(min),
        each(lambda m, n: min(m, n) * (m + n)),
        controls=[vector_freezing(vectors, warmup, interval, freeze, smoothing)] if freeze else [],
        also=biases,
    )
