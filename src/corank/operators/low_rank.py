from __future__ import annotations

from types import MappingProxyType
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional as F

from .cost import dense_flops
from .operator import Operator, leaf, require_matrix, require_vector
from .skeleton import storable
from .transpose import adjoint


@storable
@final
class LowRank(Operator):
    """b diag(gate) a, of rank r. `b` (out, r), `a` (r, in), optional `gate` (r,), `mask` (r,) bool.

    A rank whose mask is False takes no part in the product and gets no gradient; a rank whose
    gate is zero takes no part but may regrow.
    """

    #: Which axis of each leaf is the rank.
    rank_axes: ClassVar[dict[str, int]] = {"b": 1, "a": 0, "gate": 0, "mask": 0}
    numbers_held = MappingProxyType({"mask": 0})

    mask: Tensor | None

    def __init__(
        self, b: Tensor, a: Tensor, gate: Tensor | None = None, mask: Tensor | None = None
    ) -> None:
        super().__init__()
        require_matrix(b, "LowRank.b")
        require_matrix(a, "LowRank.a")
        if b.shape[1] != a.shape[0]:
            raise ValueError(
                f"LowRank: b has rank {b.shape[1]} and a has rank {a.shape[0]}; they must agree"
            )
        if gate is not None:
            require_vector(gate, "LowRank.gate", a.shape[0])
        if mask is not None and (mask.dtype != torch.bool or mask.shape != a.shape[:1]):
            kind = f"{mask.dtype} of shape {tuple(mask.shape)}"
            raise ValueError(f"LowRank.mask must be bool of shape ({a.shape[0]},), got {kind}")
        self.shape = (b.shape[0], a.shape[1])
        self.b, self.a = leaf(b), leaf(a)
        self.gate = None if gate is None else leaf(gate)
        self.register_buffer("mask", mask)

    @property
    def rank(self) -> int:
        """The number of ranks stored."""
        return self.a.shape[0]

    @property
    def alive(self) -> Tensor:
        """(r,) bool: neither masked nor gated to zero."""
        alive = torch.ones(self.rank, dtype=torch.bool, device=self.a.device)
        if self.mask is not None:
            alive = alive & self.mask
        if self.gate is not None:
            alive = alive & (self.gate != 0)
        return alive

    def latent(self, x: Tensor) -> Tensor:  # (..., in) -> (..., r)
        """diag(gate) a x: what lies between the factors."""
        return self._gated(F.linear(x, self.a))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.latent(x), self.b)

    def factors(self) -> tuple[Tensor, Tensor]:  # (out, r), (r, in)
        """Two matrices whose product is W: gate and mask are folded into the right one."""
        return self.b, self._gated(self.a.mT).mT

    def dense(self) -> Tensor:
        b, a = self.factors()
        return b @ a

    def _gated(self, z: Tensor) -> Tensor:  # (..., r)
        if self.gate is not None:
            z = z * self.gate.to(z.dtype)
        if self.mask is not None:
            z = z * self.mask.to(z.dtype)
        return z

    def flops(self, tokens: int) -> int:
        return tokens * self.rank * (2 * sum(self.shape) + self._gates())

    def folding_flops(self) -> int:
        """Floating point operations of `factors()`."""
        return self._gates() * self.rank * self.shape[1]

    def _gates(self) -> int:
        return (self.gate is not None) + (self.mask is not None)


@adjoint.register
def _adjoint(op: LowRank, x: Tensor) -> Tensor:
    return op._gated(x @ op.b) @ op.a


@dense_flops.register
def _dense_flops(op: LowRank) -> int:
    return op.folding_flops() + 2 * op.rank * op.shape[0] * op.shape[1]
