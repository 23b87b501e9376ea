from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Base
from .cost import dense_flops
from .operator import Operator, require_operators
from .packing import pack
from .precision import without_autocast
from .quantised import Quantised
from .skeleton import storable
from .through import apply_dense


@storable
@final
class OnGrid(Operator):
    """An operator rounded to the values that `grid`, a Quantised, can hold: its scales, its zeros.

    The backward pass goes straight through the rounding, and not where a value lies beyond the
    last code. `quantised(op)` is the same matrix in codes, exactly.
    """

    def __init__(self, operator: Operator, grid: Operator) -> None:
        super().__init__()
        require_operators((operator, grid), "OnGrid")
        if operator.shape != grid.shape:
            raise ValueError(
                f"OnGrid needs operators of one shape, got {operator.shape} and {grid.shape}"
            )
        self.shape = operator.shape
        self.operator, self.grid = operator, grid

    def forward(self, x: Tensor) -> Tensor:
        return apply_dense(self, x)

    def dense(self) -> Tensor:
        grid = _quantised(self.grid)
        with without_autocast(self.device):
            weight = self.operator.dense()
            codes, inside = nearest_codes(grid, weight.detach())
            rounded = _ungrouped(grid, grid.decode(codes) * grid.scales()[:, :, None]).detach()
            return rounded.to(weight.dtype) + inside * (weight - weight.detach())

    def flops(self, tokens: int) -> int:
        return dense_flops(self) + 2 * tokens * self.shape[0] * self.shape[1]


def quantised(op: OnGrid) -> Quantised:
    """The matrix of `op` as codes on its grid: no rounding is left to do."""
    return requantise(_quantised(op.grid), op.operator.dense().detach())


def requantise(grid: Quantised, weight: Tensor) -> Quantised:
    """`weight` (out, in) in the codes nearest to it, with the scales and zeros of `grid`."""
    codes, _ = nearest_codes(grid, weight)
    packed = pack(_ungrouped(grid, codes), grid.bits)
    return Quantised(packed, grid.scale, grid.shape, grid.bits, grid.group, grid.zero, grid.levels)


def nearest_codes(grid: Quantised, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, groups, group) codes, and (out, in) which of the values lie within the grid's range."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    grouped = F.pad(weight.to(wide), (0, -grid.shape[1] % grid.group))
    values = grouped.unflatten(1, (-1, grid.group)) / grid.scales().detach().to(wide)[:, :, None]
    if grid.levels is not None:
        levels = grid.levels.detach().to(wide)
        middles = (levels[1:] + levels[:-1]) / 2
        codes = torch.bucketize(values.contiguous(), middles)
        inside = (values >= levels[0]) & (values <= levels[-1])
    else:
        top = 2**grid.bits - 1
        zero = grid.zero
        start = 2 ** (grid.bits - 1) if zero is None else zero.to(wide)[:, :, None]
        whole = values.round() + start
        codes, inside = whole.clamp(0, top), (whole >= 0) & (whole <= top)
    return codes.to(torch.uint8), _ungrouped(grid, inside).to(weight.dtype)


def _ungrouped(grid: Quantised, values: Tensor) -> Tensor:
    return values.flatten(1)[:, : grid.shape[1]]


def _quantised(op: Operator) -> Quantised:
    grid = op.bound if isinstance(op, Base) else op
    if not isinstance(grid, Quantised):
        raise ValueError(f"only a Quantised has a grid to round to, not a {type(grid).__name__}")
    return grid


@dense_flops.register
def _dense_flops(op: OnGrid) -> int:
    return dense_flops(op.operator) + dense_flops(op.grid) + 3 * op.shape[0] * op.shape[1]
