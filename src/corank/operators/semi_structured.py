from __future__ import annotations

from types import MappingProxyType
from typing import final

import torch
from torch import Tensor

from .cost import dense_flops
from .operator import Operator, leaf, require_matrix
from .packing import pack, packed_width, unpack
from .semi_structured_kernel import kernel_linear
from .skeleton import storable
from .through import apply_dense
from .transpose import adjoint


@storable
@final
class SemiStructured(Operator):
    """A matrix with n numbers in every `group` neighbours of a row: 2:4 sparsity and its like.

    `values` (out, in n / group), and `places` uint8: which of its group each value is, in the bits
    that hold group - 1, packed row by row as in `packing.pack`. The product is through the matrix,
    or by torch's kernels for 2:4 where the device has them.
    """

    numbers_held = MappingProxyType({"places": 0})

    places: Tensor

    def __init__(self, values: Tensor, places: Tensor, into: int, group: int) -> None:
        super().__init__()
        require_matrix(values, "SemiStructured.values")
        out, stored = values.shape
        if not 1 <= group <= 256 or into % group or stored * group % into or stored > into:
            raise ValueError(
                f"SemiStructured: {stored} values in a row are not as many in every {group} of "
                f"its {into} columns"
            )
        wanted = (out, packed_width(stored, place_bits(group)))
        if places.dtype != torch.uint8 or tuple(places.shape) != wanted:
            raise ValueError(f"SemiStructured.places must be uint8 of shape {wanted}")
        self.into, self.group = into, group
        self.shape = (out, into)
        self.values = leaf(values)
        self.register_buffer("places", places.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        if self.group == 4 and 2 * self.values.shape[1] == self.into:
            product = kernel_linear(self, self.values, x)
            if product is not None:
                return product
        return apply_dense(self, x)

    def dense(self) -> Tensor:
        stored = self.values.shape[1]
        inside = unpack(self.places, place_bits(self.group), stored).long()
        each = stored * self.group // self.into
        starts = torch.arange(0, self.into, self.group, device=inside.device)
        columns = inside + starts.repeat_interleave(each)
        return self.values.new_zeros(self.shape).scatter(1, columns, self.values)

    def flops(self, tokens: int) -> int:
        return 2 * tokens * self.shape[0] * self.shape[1]


def place_bits(group: int) -> int:
    """Bits that hold which of `group` neighbours a value is."""
    return max(1, (group - 1).bit_length())


def thin(weight: Tensor, kept: Tensor, group: int) -> SemiStructured:
    """The SemiStructured of `weight` (out, in) at the places where `kept` (out, in) bool is True,
    as many in every `group` neighbours of a row."""
    inside = kept.unflatten(1, (-1, group))
    each = inside.sum(2)
    if int(each.min()) != int(each.max()):
        raise ValueError(f"kept must hold as many in every {group} neighbours of a row")
    columns = inside.nonzero()[:, 2].view(len(weight), -1)
    values = weight.detach()[kept].view(columns.shape)
    return SemiStructured(values, pack(columns, place_bits(group)), weight.shape[1], group)


@adjoint.register
def _adjoint(op: SemiStructured, x: Tensor) -> Tensor:
    return apply_dense(op, x, transposed=True)


@dense_flops.register
def _dense_flops(op: SemiStructured) -> int:
    return 0
