from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from .cost import dense_flops
from .operator import Operator, require_operators
from .skeleton import storable


@storable
@final
class RoundedInputs(Operator):
    """x -> W round(x), each row of x rounded to 2**bits - 1 even steps up to its largest magnitude.

    Not a linear map, though near one: `dense()` is W. `bits` is 2..8, so that what meets W, whole
    numbers over 2**(bits - 1), is exact in half precision too; the row's scale multiplies what
    comes out. With a `group` (at least 1) so many neighbours of a row share a scale of their own,
    and what meets W are rounded numbers. The gradient passes the rounding unchanged.
    """

    linear = False

    def __init__(self, operator: Operator, bits: int = 8, group: int | None = None) -> None:
        super().__init__()
        require_operators((operator,), "RoundedInputs")
        if bits not in range(2, 9):
            raise ValueError(f"RoundedInputs.bits must be 2, 3, ... or 8, got {bits}")
        if group is not None and group < 1:
            raise ValueError(f"RoundedInputs.group must be at least 1, got {group}")
        self.shape = operator.shape
        self.operator, self.bits, self.group = operator, bits, group

    def forward(self, x: Tensor) -> Tensor:
        if self.group is not None:
            y: Tensor = self.operator(self._in_groups(x, self.group))
            return y
        codes, scale = self.round(x)
        unit = 2 ** (self.bits - 1)  # inputs within -1..1, so that no product of halves overflows
        y = self.operator(codes / unit)
        return (y * (scale * unit)).to(y.dtype)

    def _in_groups(self, x: Tensor, group: int) -> Tensor:
        filled = F.pad(x, (0, -x.shape[-1] % group)).unflatten(-1, (-1, group))
        codes, scale = self.round(filled)
        return (codes * scale).to(x.dtype).flatten(-2)[..., : x.shape[-1]]

    def round(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Whole numbers of the shape and dtype of x (..., in), and a scale (..., 1)."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        largest = wide.detach().abs().amax(-1, keepdim=True)
        scale = torch.where(largest == 0, 1.0, largest / (2 ** (self.bits - 1) - 1))
        steps = wide / scale
        return (steps + (steps.round() - steps).detach()).to(x.dtype), scale

    def dense(self) -> Tensor:
        return self.operator.dense()

    def flops(self, tokens: int) -> int:
        return self.operator.flops(tokens) + 2 * tokens * sum(self.shape)


@dense_flops.register
def _dense_flops(op: RoundedInputs) -> int:
    return dense_flops(op.operator)
