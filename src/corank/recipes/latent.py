"""Low-rank latent spaces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from ..control import Control, Training
from ..control.penalties import nuclear_norm
from ..models import Site
from ..operators import Dense, Operator, Product
from ..registry import Factorization, Paper, method
from ..rewrites import Rewrite
from ..rewrites.adapting import leaf_dtype, trains
from ..rewrites.decomposed import wide
from .counts import each


def _inserted(training: Training) -> Iterator[Tensor]:
    for op in training.operators.values():
        yield cast("Dense", cast("Product", op).operators[0]).weight


@method(
    Paper(
        "Learning Low-Rank Latent Spaces with Simple Deterministic Autoencoder: Theoretical and "
        "Empirical Insights",
        "2310.16194",
        "the abstract and introduction; equations not read",
        "the inserted layer starts at the identity, comes before the encoder's bias, and has none "
        "of its own; the default of the penalty's weight is ours",
    ),
    area="train",
    laws=("factorization", "from_w", "preserves"),
    equation=lambda w, p, **_: p["weight"] @ p["weight_1"],
)
def lorae(penalty: float = 1e-3) -> Factorization:
    """M W: a square matrix after an encoder's last weight, of small nuclear norm.

    Meant for the one weight whose outputs are the latent vectors: name it in `targets`. Merging
    leaves a plain weight of low rank. penalty: over 0, times the sum of M's singular values.
    """
    if penalty <= 0:
        raise ValueError(f"penalty={penalty} must be over 0")

    def rewrite(op: Operator, site: Site) -> Operator:
        eye = torch.eye(op.shape[0], dtype=leaf_dtype(op), device=op.device)
        return Product(Dense(trains(eye)), Dense(trains(wide(op).clone())))

    return Factorization(
        Rewrite(rewrite),
        count=each(lambda out, into: out * out + out * into),
        controls=(Control(penalty=nuclear_norm(penalty, _inserted)),),
    )
