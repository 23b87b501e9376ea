"""Mixtures of linear experts whose weights are one factored tensor."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .drawing import require_sizes, uniform
from .entmax import entmax15

#: The dense weight (experts, inputs, outputs) of each form's factors.
_DENSE = {
    "cp": "nr,ir,or->nio",
    "tucker": "na,ib,oc,abc->nio",
    "ring": "xny,yiz,zox->nio",
}


@final
class MultilinearExperts(nn.Module):
    """y = sum over n, i of W[n, i, :] g(x)[n] [x; 1][i], W factored (mu-MoE, arXiv 2402.12550).

    W (experts, in + 1, out) is never formed. `form`: "cp" of that rank; "tucker" with a core
    rank x rank x rank; "ring", a tensor ring with bonds of the rank, and "train", the same whose
    outer bond is one. The gates g are the 1.5-entmax of the normalised scores of a linear map that
    starts at zero, so that all experts begin alike. x (..., in) -> (..., out).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        experts: int,
        rank: int,
        form: Literal["cp", "tucker", "ring", "train"] = "cp",
        seed: int = 0,
    ) -> None:
        super().__init__()
        require_sizes(
            "MultilinearExperts", inputs=inputs, outputs=outputs, experts=experts, rank=rank
        )
        if form not in (*_DENSE, "train"):
            raise ValueError(
                f"MultilinearExperts: form={form!r} is none of cp, tucker, ring, train"
            )
        draw = torch.Generator().manual_seed(seed)
        self.form = "ring" if form == "train" else form
        self.router = nn.Parameter(torch.zeros(experts, inputs))
        wide, by_input, by_rank = inputs + 1, inputs**-0.5, rank**-0.5
        if self.form == "ring":
            outer = 1 if form == "train" else rank
            copies = 1 + torch.randn(outer, experts, rank, generator=draw)
            factors = [
                nn.Parameter(torch.eye(outer, rank)[:, None] * copies),
                uniform(draw, rank, wide, rank, bound=by_input),
                uniform(draw, rank, outputs, outer, bound=(rank * outer) ** -0.5),
            ]
        else:
            factors = [
                nn.Parameter(1 + torch.randn(experts, rank, generator=draw)),
                uniform(draw, wide, rank, bound=by_input),
                uniform(draw, outputs, rank, bound=by_rank),
            ]
            if form == "tucker":
                factors.append(uniform(draw, rank, rank, rank, bound=1 / rank))
        self.factors = nn.ParameterList(factors)

    def gates(self, x: Tensor) -> Tensor:  # (..., in) -> (..., experts)
        """How much of each expert acts: at least zero, one in sum."""
        scores = F.linear(x, self.router)
        return entmax15(F.layer_norm(scores, scores.shape[-1:]))

    def dense(self) -> Tensor:
        """The weight W, (experts, in + 1, out), its last input the bias."""
        return torch.einsum(_DENSE[self.form], *self.factors)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gates(x)
        wide = F.pad(x, (0, 1), value=1.0)
        n, i, o, *core = self.factors
        if self.form == "ring":
            expert = torch.einsum("...n,xny->...xy", gates, n)
            chosen = expert @ torch.einsum("...i,yiz->...yz", wide, i)  # (..., outer, rank)
            return torch.einsum("...xz,zox->...o", chosen, o)
        if core:
            pair = torch.einsum("...a,abc->...bc", gates @ n, core[0])
            return F.linear(((wide @ i)[..., None, :] @ pair).squeeze(-2), o)
        return F.linear((gates @ n) * (wide @ i), o)
