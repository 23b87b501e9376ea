"""Weights whose structure trains: generalised block low-rank."""

from __future__ import annotations

import torch

from ..control import Control, Training
from ..control.windows import sharpen, shrink
from ..linalg import exact_svd
from ..models import Site
from ..operators import Operator, Windowed
from ..registry import Factorization, Paper, method
from ..rewrites import Rewrite
from ..rewrites.adapting import leaf_dtype, trains
from .counts import each


@method(
    Paper(
        "Differentiable Learning of Generalized Structured Matrices for Efficient Deep Neural "
        "Networks",
        "2310.18882",
        "the authors' code: the Gaussian-Dirichlet windows, their start, annealing and proximal "
        "step; the equations were not read",
        "windows are multiplied with the factors in every step, so a narrow one saves numbers and "
        "operations only in what it would take to store it; sigma grows over all of the planned "
        "steps; the factors start as W's singular triples, their roots in both; Adam's first beta "
        "is that of all leaves, where the code sets it to zero for the windows",
    ),
    area="train",
    laws=("factorization", "from_w", "changes_shape"),
)
def gblr(
    target: float = 0.13,
    threshold: float = 0.04,
    sigma: float = 100.0,
    first_sigma: float = 1.0,
    rate: float = 0.5,
) -> Factorization:
    """A sum of rank-one blocks whose places and sizes train, narrowed until few numbers are left.

    target: the mean width of the blocks, as a share of their sides, 0 to 1. threshold: of the
    proximal step on the widths, times their learning rate, which is `rate` times that of others.
    The blocks' edges sharpen from `first_sigma` to `sigma`; the controller needs total_steps.
    """
    if not 0 <= target <= 1 or threshold < 0 or not 0 < first_sigma <= sigma or rate <= 0:
        raise ValueError(
            f"target={target}, threshold={threshold}, first_sigma={first_sigma}, sigma={sigma}, "
            f"rate={rate}: within [0, 1], at least 0, over 0 and up to sigma, and over 0"
        )

    def rewrite(op: Operator, site: Site) -> Operator:
        u, s, vh, _ = exact_svd(op.dense().detach().to(leaf_dtype(op)))
        root, rank = s.sqrt(), len(s)
        share = max(op.shape) / sum(op.shape)  # of a dense weight's numbers to the factors'
        whole = int(rank * share / 2)
        widths = torch.full((2, rank), share / (2 - share), dtype=s.dtype, device=s.device)
        widths[:, :whole] = 1.0
        b, a = trains(u * root), trains(root[:, None] * vh)
        return Windowed(b, a, trains(widths), trains(torch.zeros_like(widths)), first_sigma)

    def anneal(training: Training) -> None:
        sharpen(training, first_sigma, sigma)

    def after_step(training: Training) -> None:
        anneal(training)
        shrink(training, threshold, target)

    control = Control(
        start=anneal, resume=anneal, after_step=after_step,
        learning_rates={"widths": rate, "starts": rate},
    )  # fmt: skip
    count = each(lambda out, into: min(out, into) * (out + into + 4))
    return Factorization(Rewrite(rewrite), count, controls=(control,))
