"""Weights that are short sums of Kronecker products, trained from the start."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import SiteError
from ..models import Site
from ..operators import KronSum, Operator
from ..registry import Factorization, Paper, method
from ..rewrites import Rewrite
from ..rewrites.adapting import uniform
from .counts import each


def _phm(w: Tensor, p: dict[str, Tensor], **_: Any) -> Tensor:
    total: Tensor = sum(torch.kron(a, s) for a, s in zip(p["p"], p["q"], strict=True))  # type: ignore[assignment]
    return total


@method(
    Paper(
        "Beyond Fully-Connected Layers with Quaternions: Parameterization of Hypercomplex "
        "Multiplications with 1/n Parameters",
        "2102.08597",
        "the sum of Kronecker products; its sections were not read",
        "the start is not given in what was read: A uniform of variance 1 / n^2 and each S by "
        "Glorot's rule, which together give W the variance of Glorot's rule",
    ),
    area="train",
    laws=("factorization",),
    equation=_phm,
)
def phm(n: int = 4) -> Factorization:
    """A_1 (x) S_1 + ... + A_n (x) S_n, all trained: about 1 / n of a dense weight's numbers.

    n: the dimension of the numbers that are multiplied; it must divide both sides of each weight.
    """
    if n < 1:
        raise ValueError(f"n={n} must be at least 1")

    def rewrite(op: Operator, site: Site) -> Operator:
        for side in op.shape:
            if side % n:
                raise SiteError(
                    site.where, f"n={n} does not divide {side}", "Give an n that divides all sides."
                )
        out, into = op.shape[0] // n, op.shape[1] // n
        rules = uniform(op, site, n, n, n, bound=math.sqrt(3) / n)
        return KronSum(rules, uniform(op, site, n, out, into, bound=math.sqrt(6 / (out + into))))

    return Factorization(Rewrite(rewrite), each(lambda out, into: n**3 + out * into // n))
