"""Weights written so that they train more easily: by lengths, by rows of unit length."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..control import Control
from ..control.penalties import unit_rows
from ..models import Site
from ..operators import Dense, Operator, RowNormalised, normalise_rows, trainable
from ..registry import Factorization, Paper, method
from ..rewrites import Rewrite
from .counts import each

LAWS = ("factorization", "from_w")


def trained(op: Operator, site: Site) -> Operator:
    """The weight as it is, to train."""
    return Dense(nn.Parameter(op.dense().detach().clone()))


def _unit_rows(w: Tensor) -> Tensor:
    return w / w.norm(dim=1, keepdim=True)


@method(
    Paper(
        "Weight Normalization: A Simple Reparameterization to Accelerate Training of Deep Neural "
        "Networks",
        "1602.07868",
        "equation 2: w = g v / |v| for each output; v starts as the weight and g as its length",
        "the start from the statistics of a first batch is left out",
    ),
    area="optimize",
    laws=LAWS,
    equation=lambda w, p: p["m"][:, None] * _unit_rows(p["weight"]),
)
def weight_norm() -> Factorization:
    """Each row as a direction and a length, which both train; the function stays the same."""

    def rewrite(op: Operator, site: Site) -> Operator:
        return trainable(normalise_rows(trained(op, site), detached=False))

    return Factorization(Rewrite(rewrite), each(lambda out, into: out * into + out))


@method(
    Paper(
        "Weight Conditioning for Smooth Optimization of Neural Networks",
        "2409.03424",
        "row equilibration, W' = diag(1 / |row|) W, differentiated through (abstract; the sections "
        "were not read)",
        "the conditioner is that of rows alone",
    ),
    area="optimize",
    laws=LAWS,
    equation=lambda w, p: _unit_rows(p["weight"]),
)
def weight_conditioning() -> Factorization:
    """Each row divided by its length, which narrows the spread of the singular values.

    The function is not that of the weights which were there: it is for models that start anew.
    """

    def rewrite(op: Operator, site: Site) -> Operator:
        ones = torch.ones(op.shape[0], dtype=op.dtype, device=op.device)
        return RowNormalised(trained(op, site), ones, detached=False)

    return Factorization(
        Rewrite(rewrite), each(lambda out, into: out * into), each(lambda out, into: out)
    )


@method(
    Paper(
        "Preprint: Norm Loss: An efficient yet effective regularization method for deep neural "
        "networks",
        "2103.06583",
        "the loss: the sum over weight vectors of (1 - |w|)^2 (abstract; the sections were not "
        "read)",
        "the strength is 0.01 by default",
    ),
    area="optimize",
    laws=LAWS,
    equation=lambda w, p, **_: p["weight"],
)
def norm_loss(strength: float = 0.01) -> Factorization:
    """The weights as they are, with a loss that draws each row towards a length of one.

    strength: of that loss, which the controller adds; `corank.losses.norm_loss` is it alone.
    """
    if strength < 0:
        raise ValueError(f"strength must be at least 0, got {strength!r}")
    controls = (Control(penalty=unit_rows(strength)),)
    return Factorization(Rewrite(trained), each(lambda out, into: out * into), controls=controls)
