"""Backward passes that keep a sketch of the activations: see `corank.operators.Sketched`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..models import Site
from ..operators import Operator, Sketched
from ..registry import Factorization, Paper, method
from ..rewrites import Rewrite
from .counts import each

LAWS = ("factorization", "from_w")


def _keeping(**options: Any) -> Rewrite:
    def rewrite(op: Operator, site: Site) -> Operator:
        seed = int(site.draws().initial_seed() % 2**31)
        return Sketched(nn.Parameter(op.dense().detach().clone()), seed=seed, **options)

    return Rewrite(rewrite)


def _without_outputs(sites: Sequence[Site], ops: Sequence[Operator]) -> Sequence[Site]:
    return [site for site in sites if site.role != "o"]


@method(
    Paper(
        "CompAct: Compressed Activations for Memory-Efficient LLM Training",
        "2410.15352",
        "the forward and backward passes of linear layers, all but the attention's output",
        "the gradient is brought back to the weight's shape in the backward pass; Adam in the "
        "small space is left to the optimiser; passes are counted, not steps",
    ),
    area="optimize",
    laws=LAWS,
)
def compact(ratio: float = 0.125, every: int = 50) -> Factorization:
    """Linear layers that keep their inputs times a random matrix for the backward pass.

    ratio: kept numbers over the inputs' features, at most 1. every: passes with the same matrix.
    """
    count = each(lambda out, into: out * into)
    return Factorization(
        _keeping(side="features", ratio=ratio, every=every), count, prepare=_without_outputs
    )


@method(
    Paper(
        "Memory-Efficient Backpropagation through Large Linear Layers",
        "2201.13195",
        "the randomised product of gradients and inputs, with a Gaussian matrix",
        "other random matrices are left out",
    ),
    area="optimize",
    laws=LAWS,
)
def rmm_linear(ratio: float = 0.125) -> Factorization:
    """Linear layers that keep random combinations of their tokens for the backward pass.

    ratio: kept rows over the tokens of a batch, at most 1.
    """
    count = each(lambda out, into: out * into)
    return Factorization(_keeping(side="tokens", ratio=ratio), count)
