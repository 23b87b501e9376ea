"""Adapter modules: small networks behind a weight."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import nn

from ..errors import SiteError
from ..models import Site, find_norms
from ..operators import Bottleneck, KronSum, Operator, Product
from ..registry import Adaptation, Paper, method
from ..rewrites import Rewrite
from ..rewrites.adapting import leaf_dtype, trains, zeros
from ..rewrites.frozen import shared_seed


@method(
    Paper(
        "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers",
        "2106.04647",
        "parametrised hypercomplex layers with shared slow weights (sections 3 and 3.2, not "
        "re-read); start, biases, nonlinearity and layer norms as in the authors' code",
        "the module stands behind every targeted weight: target those that end the attention and "
        "feed-forward blocks for the paper's places. A bias of the layer is added after it, not "
        "before, where the module's own bias can make up for it",
    ),
    area="adapt",
    laws=("adapter", "plain_module", "also"),
)
def compacter(
    n: int = 4, reduction_factor: int = 32, rank: int = 1, layer_norms: bool = True
) -> Adaptation:
    """y + up gelu(down y) for y = W x, both sums of n Kronecker products with shared factors.

    The n x n factors are shared by all sites. The bottleneck is outputs / reduction_factor, a
    multiple of n; the other factors are of `rank`. layer_norms: train the model's norms too. The
    start is published as nearly, not exactly, that of W. Compacter++ is the one with the ends of
    the feed-forward blocks alone as targets.
    """
    if n < 1 or rank < 1 or reduction_factor < 1:
        raise ValueError(f"n={n}, rank={rank}, reduction_factor={reduction_factor}: at least 1")

    def bottleneck(out: int) -> int:
        return max(out // reduction_factor // n, 1) * n

    def rewrite(op: Operator, site: Site) -> Operator:
        if site.kind == "embedding":
            raise SiteError(
                site.where, "an adapter module is no table to look up", "Leave embeddings out."
            )
        out = op.shape[0]
        if out % n:
            raise SiteError(
                site.where, f"n {n} does not divide {out}", "Give an n that divides the outputs."
            )
        if (key := f"slow {n}") not in site.pool:
            drawn = torch.Generator().manual_seed(shared_seed(site, "slow"))
            slow = 1e-4 * torch.randn(n, n, n, generator=drawn)
            site.pool[key] = trains(slow.to(op.device, leaf_dtype(op)))

        def glorot(rows: int, columns: int) -> nn.Parameter:
            limit = sqrt(2) * sqrt(6 / (rows + columns))
            drawn = (2 * torch.rand(n, rows, columns, generator=site.draws()) - 1) * limit
            return trains(drawn.to(op.device, leaf_dtype(op)))

        def layer(out: int, into: int) -> KronSum:
            return KronSum(site.pool[key], glorot(out // n, rank), glorot(rank, into // n))

        width = bottleneck(out)
        up, down = layer(out, width), layer(width, out)
        return Product(Bottleneck(up, down, zeros(op, width), zeros(op, out)), op)

    def count(sites: Sequence[Site]) -> int:
        sides = [s.shape[0] + bottleneck(s.shape[0]) for s in sites]
        return n**3 + (2 * rank + 1) * sum(sides)

    also = _norms if layer_norms else None
    return Adaptation(Rewrite(rewrite), count, also=also)


def _norms(model: nn.Module, sites: Sequence[Site]) -> list[nn.Parameter]:
    """Weights and biases of the model's normalisations over features."""
    return list(dict.fromkeys(p for norm in find_norms(model) for p in norm.parameters()))
