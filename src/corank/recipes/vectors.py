"""Adapters put together from vectors, or parts of factors, that are trained and shared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..control import Control
from ..errors import SiteError
from ..models import Site
from ..operators import Dense, Operator, Product, Tiled, VectorBank, transpose
from ..registry import Adaptation, Paper, method
from ..rewrites import plus
from ..rewrites.adapting import kaiming, leaf_dtype, normal, require_rank, trains, zeros
from ..rewrites.frozen import shared_seed
from .counts import each


def _vb_lora(w: Tensor, p: dict[str, Tensor], topk: int = 2, **_: Any) -> Tensor:
    def rows(logits: Tensor) -> Tensor:
        kept = logits.argsort(-1, descending=True)[..., :topk]
        weights = torch.zeros_like(logits).scatter(-1, kept, logits.gather(-1, kept).softmax(-1))
        return (weights @ p["bank"]).flatten(1)

    return w + rows(p["logits"]).T @ rows(p["logits_1"])


@method(
    Paper(
        "VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks",
        "2405.15179",
        "equations 2 to 5 (numbers from memory); defaults of PEFT's source",
        "the ratio of the two learning rates is from memory; files hold all logits, so that "
        "training can go on, where the paper stores the topk weights and indices of a piece alone",
    ),
    area="adapt",
    laws=("adapter",),
    equation=_vb_lora,
)
def vb_lora(
    rank: int = 4,
    num_vectors: int = 256,
    vector_length: int = 256,
    topk: int = 2,
    init_vector_bank_bound: float = 0.02,
    init_logits_std: float = 0.1,
    logits_rate: float = 10.0,
) -> Adaptation:
    """W + b a, both put together from one bank of vectors shared by all sites and both factors.

    Each piece of vector_length is a softmax mixture of the topk of num_vectors. The start is small
    and not zero, as published. logits_rate: the logits' learning rate over the bank's.
    """

    def delta(op: Operator, site: Site) -> Operator:
        require_rank(rank, site)
        for side in site.shape:
            if side % vector_length:
                raise SiteError(
                    site.where,
                    f"vector_length {vector_length} does not divide {side}",
                    "Give a vector_length that divides all sides of the targeted weights.",
                )
        key = f"bank {num_vectors} {vector_length}"
        if key not in site.pool:
            generator = torch.Generator().manual_seed(shared_seed(site, "bank"))
            drawn = torch.rand(num_vectors, vector_length, generator=generator)
            start = (2 * drawn - 1) * init_vector_bank_bound
            site.pool[key] = trains(start.to(op.device, leaf_dtype(op)))

        def rows(side: int) -> VectorBank:
            pieces = side // vector_length
            logits = normal(op, site, rank, pieces, num_vectors, std=init_logits_std)
            return VectorBank(site.pool[key], logits, topk)

        return Product(transpose(rows(site.shape[0])), rows(site.shape[1]))

    def count(sites: Sequence[Site]) -> int:
        pieces = sum(sum(site.shape) // vector_length for site in sites)
        return num_vectors * (vector_length + rank * pieces)

    controls = [Control(learning_rates={"logits": logits_rate})]
    return Adaptation(plus(delta), count, controls=controls)


def _block_lora(
    w: Tensor, p: dict[str, Tensor], rank: int = 2, alpha: float = 1.0, blocks: int = 8
) -> Tensor:
    return w + alpha / rank * p["weight"] @ torch.cat([p["weight_1"]] * blocks, 1)


@method(
    Paper(
        "One Head Eight Arms: Block Matrix based Low Rank Adaptation for CLIP-based Few-Shot "
        "Learning",
        "2501.16720",
        "abstract: sub-matrices of both factors, those of the down-projection shared, so that "
        "products become sums (sections not read; no code was found)",
        "our reading: the down-projection is one block repeated along the input, so that its "
        "products become sums of the input's parts; the up-projection is an ordinary one. Rank "
        "and scale are CLIP-LoRA's (from memory), eight blocks a guess",
    ),
    area="adapt",
    laws=("adapter", "preserves"),
    equation=_block_lora,
)
def block_lora(rank: int = 2, alpha: float = 1.0, blocks: int = 8) -> Adaptation:
    """LoRA whose down-projection is one block, shared by all parts of the input."""

    def delta(op: Operator, site: Site) -> Operator:
        require_rank(rank, site)
        out, into = op.shape
        if blocks < 1 or into % blocks:
            raise SiteError(
                site.where,
                f"{blocks} blocks do not divide its {into} inputs",
                "Give a number of blocks that divides the inputs of the targeted weights.",
            )
        block = Dense(kaiming(op, site, rank, into // blocks))
        return Product(Dense(zeros(op, out, rank)), Tiled(block, blocks))

    count = each(lambda out, into: rank * (out + into // blocks))
    return Adaptation(plus(delta, alpha / rank), count)
