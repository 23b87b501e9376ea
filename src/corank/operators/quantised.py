from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from .cost import dense_flops
from .operator import Operator, leaf, require_matrix, require_vector
from .packing import packed_width, unpack
from .skeleton import storable
from .through import apply_dense

#: Codes that a CPU decodes at a time: it holds no more beside the matrix, if nothing trains.
_BLOCK = 1 << 19


@storable
@final
class Quantised(Operator):
    """A matrix in packed codes, one scale per group of `group` neighbours in a row.

    - `codes` (out, ceil(in bits / 8)) uint8, packed row by row as in `packing.pack`;
    - `scale` (out, ceil(in / group)): the last group of a row may be short; or, quantised itself,
      a matrix of one row that holds them row by row;
    - `zero` (out, ceil(in / group)) uint8 or None, `levels` (at most 2**bits,) or None, not both.

    A code c stands for scale * (c - zero), for scale * levels[c], or, with neither, for
    scale * (c - 2**(bits - 1)). The backward pass unpacks again instead of keeping the matrix.
    """

    codes: Tensor
    zero: Tensor | None

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor | Operator,
        shape: tuple[int, int],
        bits: int,
        group: int,
        zero: Tensor | None = None,
        levels: Tensor | None = None,
    ) -> None:
        super().__init__()
        out, into = shape
        if group < 1:
            raise ValueError(f"Quantised.group must be at least 1, got {group}")
        _require_bytes(codes, "codes", (out, packed_width(into, bits)))
        groups = (out, -(-into // group))
        wanted = groups
        if isinstance(scale, Operator):
            wanted = (1, out * groups[1])
        else:
            require_matrix(scale, "Quantised.scale")
        if tuple(scale.shape) != wanted:
            raise ValueError(f"Quantised.scale must be {wanted}, got {tuple(scale.shape)}")
        if zero is not None:
            _require_bytes(zero, "zero", groups)
        if levels is not None:
            require_vector(levels, "Quantised.levels")
            if zero is not None or levels.shape[0] > 2**bits:
                raise ValueError(
                    f"Quantised: levels exclude zero and are at most {2**bits} for {bits} bits"
                )
        self.shape, self.bits, self.group = (out, into), bits, group
        self.numbers_held = {"codes": out * into}
        self.scale = scale if isinstance(scale, Operator) else leaf(scale)
        self.levels = None if levels is None else leaf(levels)
        self.register_buffer("codes", codes)
        self.register_buffer("zero", zero)

    def forward(self, x: Tensor) -> Tensor:
        return apply_dense(self, x)

    def scales(self) -> Tensor:
        """(out, ceil(in / group))."""
        if isinstance(self.scale, Operator):
            return self.scale.dense().view(self.shape[0], -1)
        return self.scale

    def dense(self) -> Tensor:
        scale = self.scales()
        if torch.is_grad_enabled() or scale.device.type != "cpu":
            return self._rows(slice(None), scale)
        made = scale.new_empty(self.shape)
        step = max(1, _BLOCK // max(1, self.shape[1]))
        for first in range(0, self.shape[0], step):
            rows = slice(first, first + step)
            made[rows] = self._rows(rows, scale)
        return made

    def _rows(self, rows: slice, scale: Tensor) -> Tensor:
        into = self.shape[1]
        codes = unpack(self.codes[rows], self.bits, into)
        if short := -into % self.group:
            codes = F.pad(codes, (0, short))
        codes = codes.unflatten(1, (-1, self.group))
        weight = self.decode(codes, rows).to(scale.dtype) * scale[rows, :, None]
        return weight.flatten(1)[:, :into]

    def flops(self, tokens: int) -> int:
        return dense_flops(self) + 2 * tokens * self.shape[0] * self.shape[1]

    def decode(self, codes: Tensor, rows: slice = slice(None)) -> Tensor:
        """What codes (rows, groups, group) stand for before the scale."""
        if self.levels is not None:
            levels = self.levels.to(self.dtype)
            return levels.index_select(0, codes.flatten().int()).view(codes.shape)
        values = codes.to(self.dtype, copy=True)
        if self.zero is None:
            return values.sub_(2 ** (self.bits - 1))
        return values.sub_(self.zero[rows].to(values.dtype)[:, :, None])


def _require_bytes(tensor: Tensor, name: str, shape: tuple[int, int]) -> None:
    if tensor.dtype != torch.uint8 or tuple(tensor.shape) != shape:
        kind = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        raise ValueError(f"Quantised.{name} must be uint8 of shape {shape}, got {kind}")


@dense_flops.register
def _dense_flops(op: Quantised) -> int:
    return (1 if op.levels is not None else 2) * op.shape[0] * op.shape[1]
