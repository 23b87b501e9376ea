"""Cells that pass their state through, with maps of low rank, and a diagonal, from it."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from ..operators import Diagonal, LowRank, Operator, Sum, trainable
from .drawing import require_sizes, uniform


@final
class LowRankGRUCell(nn.Module):
    """A gated recurrent unit whose maps from the state are of low rank (arXiv 1603.03116).

    u = sigmoid(Wu x + Uu h + bu), r = sigmoid(Wr x + Ur h + br), m = tanh(Wm x + Um (r * h) + bm),
    h' = u * h + (1 - u) * m, with U = b a, `diagonal` adds a diagonal to each; `tied` shares one a
    among the three. x (batch, in) and h (batch, state), zero if none -> (batch, state).
    """

    def __init__(
        self,
        inputs: int,
        state: int,
        rank: int,
        diagonal: bool = True,
        tied: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        require_sizes("LowRankGRUCell", inputs=inputs, state=state, rank=rank)
        draw = torch.Generator().manual_seed(seed)
        a = _glorot(draw, rank, state) if tied else None
        self.inputs = nn.ParameterList(_glorot(draw, state, inputs) for _ in range(3))
        self.states = nn.ModuleList(_map(draw, state, rank, diagonal, a) for _ in range(3))
        self.update_bias = nn.Parameter(torch.ones(state))  # remembers at first
        self.reset_bias = nn.Parameter(torch.zeros(state))
        self.bias = nn.Parameter(torch.zeros(state))

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        if h is None:
            h = x.new_zeros(*x.shape[:-1], self.bias.shape[0])
        update, reset, main = (x @ w.mT for w in self.inputs)
        of_update, of_reset, of_main = self.states
        u = torch.sigmoid(update + of_update(h) + self.update_bias)
        r = torch.sigmoid(reset + of_reset(h) + self.reset_bias)
        m = torch.tanh(main + of_main(r * h) + self.bias)
        return u * h + (1 - u) * m


@final
class LowRankHighway(nn.Module):
    """A highway layer of low rank: t * relu(W x + b) + (1 - t) * x, t = sigmoid(T x + c).

    W and T are b a, and `diagonal` adds a diagonal to each; c starts at -1, so that x passes
    (arXiv 1603.03116). x (..., width) -> the same.
    """

    def __init__(self, width: int, rank: int, diagonal: bool = True, seed: int = 0) -> None:
        super().__init__()
        require_sizes("LowRankHighway", width=width, rank=rank)
        draw = torch.Generator().manual_seed(seed)
        self.main = _map(draw, width, rank, diagonal)
        self.transform = _map(draw, width, rank, diagonal)
        self.bias = nn.Parameter(torch.zeros(width))
        self.transform_bias = nn.Parameter(torch.full((width,), -1.0))

    def forward(self, x: Tensor) -> Tensor:
        t = torch.sigmoid(self.transform(x) + self.transform_bias)
        y: Tensor = t * torch.relu(self.main(x) + self.bias) + (1 - t) * x
        return y


def _map(
    draw: torch.Generator, width: int, rank: int, diagonal: bool, a: Tensor | None = None
) -> Operator:
    low = LowRank(_glorot(draw, width, rank), _glorot(draw, rank, width) if a is None else a)
    if not diagonal:
        return trainable(low)
    return trainable(Sum(low, Diagonal(uniform(draw, width, bound=0.01))))


def _glorot(draw: torch.Generator, out: int, into: int) -> nn.Parameter:
    return uniform(draw, out, into, bound=math.sqrt(6 / (out + into)))
