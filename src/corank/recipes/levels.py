"""Adapters whose leaves do not learn alike: other rates, other data, other gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..control import Control, Training
from ..control.alternating import turns
from ..control.penalties import binary_gates, orthogonality
from ..control.ranks import mask
from ..control.retiring import freeze, keep_frozen
from ..models import Site
from ..operators import Gated, LowRank, Operator, Scaled, Tempered
from ..registry import Adaptation, Paper, method
from ..rewrites import plus, zero_low_rank
from ..rewrites.adapting import zeros
from .counts import each, low_rank
from .dynamic import DYNAMIC, every, gated_delta, pseudo_singular
from .lora import ADAPTER


@method(
    Paper(
        "LoRA+: Efficient Low Rank Adaptation of Large Models",
        "2402.12354",
        "the authors' code",
        "the embeddings' own rate of the code (1e-6) is left to the user's groups",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=lambda w, p, rank=8, alpha=16.0, **_: w + alpha / rank * p["b"] @ p["a"],
)
def lora_plus(rank: int = 8, alpha: float = 16.0, ratio: float = 16.0) -> Adaptation:
    """LoRA whose b learns at `ratio` (at least 1) times the rate of a.

    Make the optimiser of `corank.controller(model).parameter_groups(lr)`.
    """
    if not ratio >= 1:
        raise ValueError(f"ratio={ratio} must be at least 1")
    control = Control(learning_rates={"b": ratio})
    return Adaptation(plus(zero_low_rank(rank), alpha / rank), low_rank(rank), controls=(control,))


def _allora(w: Tensor, p: dict[str, Tensor], rank: int = 8, eta2: float = 1.0) -> Tensor:
    delta = p["b"] @ p["a"]
    factor = 1 / torch.sqrt(delta.detach().norm(dim=1, keepdim=True) + 1 / eta2)
    return w + delta.detach() + factor * (delta - delta.detach())


@method(
    Paper(
        "ALLoRA: Adaptive Learning Rate Mitigates LoRA Fatal Flaws",
        "2410.09692",
        "section 4.2",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=_allora,
)
def allora(rank: int = 8, eta2: float = 1.0) -> Adaptation:
    """W + b a with row i of its gradient over sqrt(|row i of b a| + 1 / eta2), and no scale.

    `eta2`: the square of the rate's factor while b a is zero; the paper tries 1, 2 and 4.
    """
    return Adaptation(
        plus(lambda op, site: Tempered(zero_low_rank(rank)(op, site), eta2)), low_rank(rank)
    )


@method(
    Paper(
        "BiLoRA: A Bi-level Optimization Framework for Overfitting-Resilient Low-Rank Adaptation "
        "of Large Pre-trained Models",
        "2403.13037",
        "section 3.2 and equation 3, at second hand; the full text was not read",
        "first order: the levels take turns, with no gradient through the lower one's solution; "
        "the real-valued form of the singular values, near binary by the penalty `binary`, no "
        "softmax; all defaults but the 8:2 split, which is the user's, are ours",
    ),
    area="adapt",
    laws=DYNAMIC,
    equation=lambda w, p, rank=8, alpha=16.0, **_: gated_delta(w, p, alpha / rank),
)
def bilora(
    rank: int = 8,
    alpha: float = 16.0,
    inner: int = 1,
    orthogonal: float = 0.1,
    binary: float = 0.0,
) -> Adaptation:
    """P diag(lambda) Q, P and Q trained on one split of the data and lambda on another.

    Of every inner + 1 steps the first `inner` move P and Q, the last lambda. Feed the batches in
    that order: `corank.control.alternate(lower, upper, inner)` of the two splits (8:2 in the
    paper), with a loop of one batch per optimiser step. `orthogonal`, `binary`: weights of the
    penalties on P and Q, and of the one that pushes lambda towards 0 or 1.
    """
    if inner < 1:
        raise ValueError(f"inner={inner} must be at least 1")

    def penalties(training: Training) -> Tensor:
        return orthogonality(orthogonal)(training) + binary_gates(binary)(training)

    return Adaptation(
        plus(pseudo_singular(rank), alpha / rank),
        each(lambda out, into: rank * (out + into + 1)),
        controls=(Control(penalty=penalties, before_step=turns({"gate"}, inner)),),
    )


@method(
    Paper(
        "DiffoRA: Enabling Parameter-Efficient LLM Fine-Tuning via Differential Low-Rank Matrix "
        "Adaptation",
        "2502.08905",
        "the abstract: a matrix of weights over modules, relaxed, discretised, then trained with "
        "shared weights; no section was read, and no code was found",
        "Ours: a sigmoid for each weight matrix, trained in turns with "
        "the factors, on a held-out split if the batches are so fed; the `keep` share of all sites "
        "with the largest stays and acts in full, the others go; the factors trained so far are "
        "what is shared with the training that follows",
    ),
    area="adapt",
    laws=DYNAMIC,
    equation=lambda w, p, rank=8, alpha=16.0, **_: (
        w + torch.sigmoid(p["logit"]) * alpha / rank * (p["b"] * p["mask"]) @ p["a"]
    ),
)
def diffora(
    rank: int = 8, alpha: float = 16.0, keep: float = 0.5, search: float = 0.3, inner: int = 1
) -> Adaptation:
    """LoRA at every weight under a learnt gate, of which the best `keep` share stays.

    The gates are trained in the first `search` (0 to 1) of the planned steps, in every
    (inner + 1)-th of them, once at least: feed those from a held-out split
    (`corank.control.alternate`). Then they are decided, the rest trains on, and
    `corank.adapters.compact` drops what lost.
    """
    if not (0 < keep <= 1 and 0 < search < 1 and inner >= 1):
        raise ValueError(
            f"keep={keep} must be over 0 to 1, search={search} between 0 and 1, inner={inner} at "
            "least 1"
        )

    def delta(op: Operator, site: Site) -> Operator:
        low = zero_low_rank(rank)(op, site)
        masked = LowRank(low.b, low.a, mask=every(op, rank))
        return Gated(Scaled(masked, alpha / rank), zeros(op, 1))

    def searching(training: Training) -> int:
        return max(inner + 1, int(search * training.planned()))

    def take_turns(training: Training) -> None:
        keep_frozen(training)
        if training.step < searching(training):
            turns({"logit"}, inner)(training)

    def decide(training: Training) -> None:
        if training.step != searching(training):
            return
        leaves = training.leaves()
        logits = {n: leaf for n, leaf in leaves.items() if n.endswith(".logit")}
        ordered = sorted(logits, key=lambda name: float(logits[name]), reverse=True)
        won = ordered[: math.ceil(keep * len(ordered))]
        freeze(training, won)
        for name in won:
            logits[name].data.fill_(torch.inf)  # whose sigmoid is 1
        for name in set(ordered) - set(won):
            path = name.removesuffix("logit")
            for at, op in training.low_ranks().items():
                if at.startswith(path):
                    mask(op, torch.zeros_like(every(op, op.rank)))
            freeze(training, [n for n in leaves if n.startswith(path)])

    def count(sites: Sequence[Site]) -> int:
        return low_rank(rank)(sites) + len(sites)

    control = Control(resume=keep_frozen, before_step=take_turns, after_step=decide)
    return Adaptation(plus(delta), count, controls=(control,))
