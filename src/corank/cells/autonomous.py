"""Experts that say themselves which inputs are theirs."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.experts import routed
from .drawing import require_sizes, uniform


@final
class AutonomousExperts(nn.Module):
    """A mixture of gated feed-forward experts without a router (AoE, arXiv 2501.13074).

    Each expert's gate projection is factored, inner x rank times rank x hidden. All experts
    compute their `rank` numbers of a token; those whose numbers have the greatest norms go on,
    weighted by the softmax of these norms, and reuse the numbers. x (..., hidden) -> the same.
    """

    def __init__(
        self,
        hidden: int,
        inner: int,
        experts: int,
        top_k: int,
        rank: int,
        activation: Literal["silu", "gelu", "relu"] = "silu",
        seed: int = 0,
    ) -> None:
        super().__init__()
        require_sizes("AutonomousExperts", hidden=hidden, inner=inner, experts=experts, rank=rank)
        if not 1 <= top_k <= experts:
            raise ValueError(f"AutonomousExperts: top_k={top_k} is outside 1 to {experts}")
        draw = torch.Generator().manual_seed(seed)
        self.top_k, self.activation = top_k, getattr(F, activation)
        self.narrow = uniform(draw, experts, rank, hidden)
        self.gate = uniform(draw, experts, inner, rank)
        self.up = uniform(draw, experts, inner, hidden)
        self.down = uniform(draw, experts, hidden, inner)

    def scores(self, x: Tensor) -> Tensor:  # (..., hidden) -> (..., experts)
        """How strongly each expert answers: the norm of its `rank` numbers."""
        return self._narrowed(x).norm(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        narrow = self._narrowed(rows)  # (tokens, experts, rank)
        best, index = narrow.norm(dim=-1).topk(self.top_k, dim=-1)
        weights = best.softmax(-1)
        out = torch.zeros_like(rows)
        for expert, token, choice in routed(index, self.narrow.shape[0]):
            gate = self.activation(F.linear(narrow[token, expert], self.gate[expert]))
            y = F.linear(gate * F.linear(rows[token], self.up[expert]), self.down[expert])
            out = out.index_add(0, token, (y * weights[token, choice, None]).to(out.dtype))
        return out.view(x.shape)

    def _narrowed(self, x: Tensor) -> Tensor:  # (..., hidden) -> (..., experts, rank)
        return F.linear(x, self.narrow.flatten(0, 1)).unflatten(-1, self.narrow.shape[:2])
