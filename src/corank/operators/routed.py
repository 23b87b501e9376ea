from __future__ import annotations

from typing import Literal, NoReturn, final

import torch
from torch import Tensor
from torch.nn import functional as F

from .operator import Operator, leaf, require_matrix, require_vector
from .skeleton import storable


@storable
@final
class Routed(Operator):
    """x -> b (g(x) * a x), gates g chosen by x: experts of low rank. Not a linear map.

    `b` (out, r), `a` (r, in), `router` (n, in) with n a divisor of r: gate i serves the i-th of n
    equal runs of ranks. Scores are the `score` of the router's outputs, plus `bias` (n,) where
    given; the `top_k` greatest are kept and divided by their sum. `tempered` gives the experts
    the root of their gate in the backward pass (arXiv 2502.15828), the router the gate itself.

    With a bias, `load` (n,) counts the rows that chose each gate in training, until it is reset.
    It has no matrix, so `dense()` raises.
    """

    linear = False
    load: Tensor

    def __init__(
        self,
        b: Tensor,
        a: Tensor,
        router: Operator,
        top_k: int,
        score: Literal["softmax", "sigmoid"] = "softmax",
        bias: Tensor | None = None,
        tempered: bool = False,
    ) -> None:
        super().__init__()
        require_matrix(b, "Routed.b")
        require_matrix(a, "Routed.a")
        gates = router.shape[0]
        if b.shape[1] != a.shape[0] or a.shape[0] % gates or router.shape[1] != a.shape[1]:
            raise ValueError(
                f"Routed: b {tuple(b.shape)}, a {tuple(a.shape)} and router {router.shape} do not "
                "fit: one rank, divisible by the router's outputs, and one input"
            )
        if not 1 <= top_k <= gates:
            raise ValueError(f"Routed: top_k={top_k} is outside 1 to {gates}")
        if score not in ("softmax", "sigmoid"):
            raise ValueError(f"Routed: score={score!r} is neither 'softmax' nor 'sigmoid'")
        if bias is not None:
            require_vector(bias, "Routed.bias", gates)
        self.shape = (b.shape[0], a.shape[1])
        self.b, self.a, self.router = leaf(b), leaf(a), router
        self.top_k, self.score, self.tempered = top_k, score, tempered
        self.bias = None if bias is None else leaf(bias)
        load = torch.zeros(gates, device=a.device)
        self.register_buffer("load", load, persistent=False)

    @property
    def experts(self) -> int:
        """The number of gates."""
        return self.router.shape[0]

    def gates(self, x: Tensor) -> Tensor:  # (..., in) -> (..., n)
        """What each expert is multiplied by: zero but for `top_k` of them, which sum to one."""
        logits = self.router(x)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        scores = logits.softmax(-1) if self.score == "softmax" else logits.sigmoid()
        if self.bias is not None:
            scores = scores + self.bias
        top, index = scores.topk(self.top_k, -1)
        if self.bias is not None and self.training and torch.is_grad_enabled():
            self._count(index)
        top = top / top.sum(-1, keepdim=True)
        return torch.zeros_like(scores).scatter(-1, index, top)

    def forward(self, x: Tensor) -> Tensor:
        z = F.linear(x, self.a)
        gates = self.gates(x).repeat_interleave(self.a.shape[0] // self.experts, -1).to(z.dtype)
        if not (self.tempered and torch.is_grad_enabled()):
            return F.linear(gates * z, self.b)
        root = gates.detach().sqrt()
        y = F.linear(root * z, self.b)
        return y + F.linear((gates - root) * z.detach(), self.b.detach())

    def dense(self) -> NoReturn:
        raise ValueError(
            "this adapter sends each input through experts of its own, so it is not one matrix and "
            "cannot be merged or compressed: keep it as it is, or delete it"
        )

    def flops(self, tokens: int) -> int:
        rank = self.a.shape[0]
        return tokens * rank * (2 * sum(self.shape) + 1) + self.router.flops(tokens)

    @torch.no_grad()
    def _count(self, index: Tensor) -> None:
        if self.load.is_meta:  # rebuilt from a file: counting begins anew
            self.load = torch.zeros_like(self.load, device=index.device)
        ones = torch.ones_like(index, dtype=self.load.dtype).flatten()
        self.load.add_(torch.zeros_like(self.load).index_add(0, index.flatten(), ones))
