from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableSequence
from contextlib import nullcontext
from itertools import pairwise
from typing import cast, final

import torch
from torch import Tensor, nn

from ..operators.adapted import Adapted
from ..operators.operator import Operator
from ..operators.selection import Selection
from .origin import Origin, initialised


@initialised
@final
class Experts(nn.Module):
    """One operator per expert and projection in place of transformers' fused 3-D parameters.

    `gate_up_proj[e]` has shape (2 * inner, hidden), `down_proj[e]` (hidden, inner). Forward as
    transformers 5 calls it: hidden_states (tokens, hidden), top_k_index and top_k_weights
    (tokens, k) -> (tokens, hidden). Under torch.compile every expert runs on every token and its
    weight is zero where it was not chosen: no graph break, at `experts / k` times the work.
    """

    gate_up_proj: MutableSequence[Operator]
    down_proj: MutableSequence[Operator]
    origin: Origin | None = None

    def __init__(
        self,
        gate_up_proj: Iterable[Operator],
        down_proj: Iterable[Operator],
        act_fn: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.gate_up_proj = _modules(gate_up_proj)
        self.down_proj = _modules(down_proj)
        self.act_fn = act_fn
        self.rewritten: set[tuple[str, int]] = set()  # (projection, expert) given an operator
        if len(self.gate_up_proj) != len(self.down_proj):
            raise ValueError(
                f"Experts: {len(self.gate_up_proj)} gate_up and {len(self.down_proj)} down "
                "projections; there must be one of each per expert"
            )

    @property
    def num_experts(self) -> int:
        return len(self.gate_up_proj)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self._every_expert(hidden_states, top_k_index, top_k_weights)
        out = torch.zeros_like(hidden_states)
        selection = self._selection()
        for expert, token, choice in routed(top_k_index, self.num_experts):
            rows = nullcontext() if selection is None else selection.of_tokens(token, len(out))
            with rows:
                y = self._expert(expert, hidden_states[token])
            y = y * top_k_weights[token, choice, None]
            out.index_add_(0, token, y.to(out.dtype))
        return out

    def _every_expert(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for expert in range(self.num_experts):
            weight = torch.where(index == expert, weights, 0).sum(-1, keepdim=True)  # (tokens, 1)
            out = out + (self._expert(expert, x) * weight).to(out.dtype)
        return out

    def _selection(self) -> Selection | None:
        for op in (*self.gate_up_proj, *self.down_proj):
            if isinstance(op, Adapted) and op.selection is not None:
                return op.selection
        return None

    def _expert(self, expert: int, x: Tensor) -> Tensor:
        return self.down_proj[expert](gated(self.act_fn, self.gate_up_proj[expert](x)))


def _modules(operators: Iterable[Operator]) -> MutableSequence[Operator]:
    return cast("MutableSequence[Operator]", nn.ModuleList(operators))


def gated(act_fn: Callable[[Tensor], Tensor], gate_up: Tensor) -> Tensor:
    """act(gate) * up for the two halves of the last axis."""
    gate, up = gate_up.chunk(2, dim=-1)
    return act_fn(gate) * up


def routed(top_k_index: Tensor, count: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(expert, token numbers, which of the token's k choices) for each expert that was chosen.

    An index of `count` or above (expert parallelism's mark for another rank) belongs to nobody.
    """
    chosen, order = top_k_index.flatten().sort(stable=True)
    token, choice = order // top_k_index.shape[1], order % top_k_index.shape[1]
    edges = torch.searchsorted(chosen, torch.arange(count + 1, device=chosen.device)).tolist()
    for expert, (start, stop) in enumerate(pairwise(edges)):
        if stop > start:
            yield expert, token[start:stop], choice[start:stop]
