"""Mixtures of adapters: of ranks, of LoRAs, of tensor products."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..control import Control
from ..control.experts import balanced, riemannian
from ..models import Site
from ..operators import Dense, Operator, Routed, TensorExperts
from ..registry import Adaptation, Paper, method
from ..rewrites import plus
from ..rewrites.adapting import kaiming, leaf_dtype, uniform, zeros
from .counts import each

ROUTED = ("adapter", "preserves", "plain_module")


@method(
    Paper(
        "Each Rank Could be an Expert: Single-Ranked Mixture of Experts LoRA for Multi-Task "
        "Learning",
        "2501.15103",
        "the authors' code; the text's own gate was not read",
        "All ranks are multiplied and those not chosen masked. The bias follows the loads of all "
        "forward passes between two optimiser steps, so that recomputed activations do not count "
        "twice. One gate for each rank: runs of ranks with one gate are left out.",
    ),
    area="adapt",
    laws=(*ROUTED, "moves_frozen"),
)
def smora(rank: int = 64, top_k: int = 8, alpha: float = 16.0, balance: float = 1e-5) -> Adaptation:
    """A LoRA of which each token uses its own `top_k` ranks, loads evened out by a bias.

    balance: what the bias of a rank moves by per step (auxiliary-loss-free balancing).
    """
    _require_experts(rank, top_k)

    def delta(op: Operator, site: Site) -> Operator:
        a, b = kaiming(op, site, rank, op.shape[1]), zeros(op, op.shape[0], rank)
        router = Dense(kaiming(op, site, rank, op.shape[1]))
        bias = torch.zeros(rank, dtype=leaf_dtype(op), device=op.device)
        return Routed(b, a, router, top_k, "sigmoid", bias)

    # The gates sum to one; (alpha / k) times k times them is the paper's factor.
    return Adaptation(
        plus(delta, alpha),
        each(lambda out, into: rank * (out + into) + rank * into),
        lambda sites: rank * len(sites),
        controls=(balanced(balance),),
    )


@method(
    Paper(
        "A Stronger Mixture of Low-Rank Experts for Fine-Tuning Foundation Models",
        "2502.15828",
        "the authors' code: preconditioners per expert, the root of the gate in their gradients",
        "The equations of the root were not read. Experts that were not chosen are multiplied and "
        "masked. Any optimiser follows the preconditioning, not only the two of the code.",
    ),
    area="adapt",
    laws=ROUTED,
)
def moe_lora(
    rank: int = 4,
    experts: int = 20,
    top_k: int = 10,
    alpha: float = 16.0,
    damping: float = 1e-6,
    gate_rate: float = 1e-3,
) -> Adaptation:
    """A mixture of LoRAs whose gradients are preconditioned by each expert's own factors.

    damping: added to the preconditioners' diagonals. gate_rate: the router's learning rate over
    the experts' (3e-8 over 3e-5 in the authors' runs).
    """
    _require_experts(experts, top_k)
    control = riemannian(damping)
    return Adaptation(
        plus(_mixture(rank, experts, top_k, tempered=True), alpha / rank),
        each(lambda out, into: experts * (rank * (out + into) + into)),
        controls=(Control(before_step=control.before_step, learning_rates={"weight": gate_rate}),),
    )


def _mixture(rank: int, experts: int, top_k: int, tempered: bool) -> Any:
    def delta(op: Operator, site: Site) -> Operator:
        total = rank * experts
        a, b = kaiming(op, site, total, op.shape[1]), zeros(op, op.shape[0], total)
        router = Dense(kaiming(op, site, experts, op.shape[1]))
        return Routed(b, a, router, top_k, tempered=tempered)

    return delta


def _require_experts(experts: int, top_k: int) -> None:
    if not 1 <= top_k <= experts:
        raise ValueError(f"top_k={top_k} is outside 1 to the number of experts, {experts}")


def _tensorpoly(
    w: Tensor, p: dict[str, Tensor], rank: int = 16, routing: str = "rank", **_: Any
) -> Tensor:
    weights: Any = p["logits"][0].sigmoid()
    weights = weights / weights.sum(-1, keepdim=True)
    factors = []
    for leaf, length in ((p["a"], w.shape[1]), (p["b"], w.shape[0])):
        experts: Any = leaf.transpose(0, 1)
        if routing == "order":  # mixed before they are multiplied: one expert is left
            mixed = [z @ vectors.flatten(1) for z, vectors in zip(weights, leaf, strict=True)]
            experts, weights_of = [torch.stack(mixed).view(2, rank, -1)], [1.0]
        else:
            weights_of = list(weights)
        total: Any = 0.0
        for weight, (one, two) in zip(weights_of, experts, strict=True):
            rows = torch.stack([torch.kron(one[j], two[j]) for j in range(rank)])
            total = total + weight * F.layer_norm(rows, rows.shape)[:, :length]
        factors.append(total)
    return w + factors[1].mT @ factors[0] / rank


@method(
    Paper(
        "Mixture of Latent Experts Using Tensor Products",
        "2405.16671",
        "TensorPoly I and II as in the authors' code, the version whose relaxed Bernoulli is off",
        "zero_start is ours. The task is set by corank.settings.set_task and the same for a whole "
        "batch. Both versions start from version I's uniform vectors.",
    ),
    area="adapt",
    laws=("adapter",),
    equation=_tensorpoly,
)
def tensorpoly(
    rank: int = 16,
    experts: int = 8,
    orders: int = 2,
    tasks: int = 1,
    routing: Literal["rank", "order"] = "rank",
    zero_start: bool = False,
) -> Adaptation:
    """Low-rank factors made of tensor products of short vectors, mixed by weights of the task.

    orders: vectors in a product, 2 or 4. routing: by "rank" (I) a task weighs whole experts, by
    "order" (II) the vectors of each order. zero_start: start at W itself, not near it.
    """
    if orders not in (2, 4) or routing not in ("rank", "order") or min(rank, experts, tasks) < 1:
        raise ValueError(
            f"orders={orders} is 2 or 4, routing={routing!r} 'rank' or 'order', and rank={rank}, "
            f"experts={experts}, tasks={tasks} are at least 1"
        )
    choices = (tasks, experts) if routing == "rank" else (tasks, orders, experts)

    def delta(op: Operator, site: Site) -> Operator:
        bound = (2 / 6) ** 0.5 / op.shape[1] ** 0.5
        a, b = (
            uniform(op, site, orders, experts, rank, _length(n, orders), bound=bound)
            for n in (op.shape[1], op.shape[0])
        )
        if zero_start:
            b.data[0] = 0
        return TensorExperts(a, b, uniform(op, site, *choices, bound=1e-3), op.shape)

    def count(out: int, into: int) -> int:
        vectors = orders * experts * rank * (_length(out, orders) + _length(into, orders))
        return vectors + tasks * experts * (orders if routing == "order" else 1)

    return Adaptation(plus(delta), each(count))


def _length(width: int, orders: int) -> int:
    """The least whole number whose power of `orders` is at least `width`."""
    length = max(1, int(width ** (1 / orders)) - 1)
    while length**orders < width:
        length += 1
    return length
