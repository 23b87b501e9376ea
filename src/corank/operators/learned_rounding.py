from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from .cost import dense_flops
from .operator import Operator, leaf, require_matrix, require_vector
from .packing import pack
from .precision import without_autocast
from .quantised import Quantised
from .skeleton import storable
from .through import apply_dense
from .transpose import adjoint


@storable
@final
class LearnedRounding(Operator):
    """W in codes of `bits` bits, rounded after a division by numbers of which the logarithms train.

    s (clamp(round(W / (s exp(left right + row + column))) + zero) - zero), with one step s =
    exp(log_step) and one zero point for each row. `weight` (out, in), which is not to train,
    `log_step` and `row` (out,), `left` (out, r), `right` (r, in), `column` (in,), `zero` (out,)
    uint8. The backward pass goes straight through the rounding, and not where a code is clamped.
    Settles as codes.
    """

    zero: Tensor

    def __init__(
        self,
        weight: Tensor,
        log_step: Tensor,
        left: Tensor,
        right: Tensor,
        row: Tensor,
        column: Tensor,
        zero: Tensor,
        bits: int,
    ) -> None:
        super().__init__()
        require_matrix(weight, "LearnedRounding.weight")
        out, into = weight.shape
        require_vector(log_step, "LearnedRounding.log_step", out)
        require_vector(row, "LearnedRounding.row", out)
        require_vector(column, "LearnedRounding.column", into)
        if left.shape != (out, right.shape[0]) or right.shape[1:] != (into,):
            shapes = f"{tuple(left.shape)} and {tuple(right.shape)}"
            raise ValueError(f"LearnedRounding: left and right make no {out}x{into}: {shapes}")
        if zero.dtype != torch.uint8 or zero.shape != (out,):
            raise ValueError(f"LearnedRounding.zero must be uint8 of shape ({out},)")
        if bits not in range(2, 9):
            raise ValueError(f"LearnedRounding.bits must be 2, 3, ... or 8, got {bits}")
        self.shape, self.bits = (out, into), bits
        self.weight, self.log_step = leaf(weight), leaf(log_step)
        self.left, self.right, self.row, self.column = map(leaf, (left, right, row, column))
        self.register_buffer("zero", zero)

    def train_rounding(self) -> None:
        """Let everything train but the weight."""
        for name, part in self.named_parameters():
            part.requires_grad_(name != "weight")

    def forward(self, x: Tensor) -> Tensor:
        return apply_dense(self, x)

    def dense(self) -> Tensor:
        with without_autocast(self.device):
            return self._steps() * self._step()[:, None]

    def flops(self, tokens: int) -> int:
        return dense_flops(self) + 2 * tokens * self.shape[0] * self.shape[1]

    def settled(self) -> Quantised:
        """The same matrix in codes."""
        with torch.no_grad():
            codes = self._steps() + self.zero[:, None]
            packed = pack(codes.to(torch.uint8), self.bits)
            step, zero = self._step()[:, None].clone(), self.zero[:, None].clone()
        return Quantised(packed, step, self.shape, self.bits, self.shape[1], zero)

    def _step(self) -> Tensor:  # as it is stored in the end
        return self.log_step.exp().to(self.weight.dtype)

    def _steps(self) -> Tensor:
        """Codes less their zero point, in the weight's dtype."""
        logs = self.left @ self.right + self.row[:, None] + self.column + self.log_step[:, None]
        divided = self.weight.to(logs.dtype) / logs.exp()
        rounded = divided + (divided.round() - divided).detach()
        zero = self.zero[:, None].to(logs.dtype)
        return (rounded + zero).clamp(0, 2**self.bits - 1).sub(zero).to(self.weight.dtype)


@adjoint.register
def _adjoint(op: LearnedRounding, x: Tensor) -> Tensor:
    return apply_dense(op, x, transposed=True)


@dense_flops.register
def _dense_flops(op: LearnedRounding) -> int:
    return 2 * (op.left.shape[1] + 4) * op.shape[0] * op.shape[1]
