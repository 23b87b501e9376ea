from __future__ import annotations

from types import MappingProxyType
from typing import final

import torch
from torch import Tensor

from .cost import dense_flops
from .operator import Operator, leaf, require_vector
from .packing import pack, packed_width, unpack
from .skeleton import storable
from .sparse import Sparse, sparsify
from .through import apply_dense
from .transpose import adjoint


@storable
@final
class Bitmap(Operator):
    """A matrix with a fixed support, one bit for each place that says whether it holds a number.

    `values` (n,), row by row; `mask` (ceil(out in / 8),) uint8, packed as in `packing.pack`, with n
    bits set. The product is through the matrix. Smaller than a `Sparse` from one number in 32 on.
    """

    numbers_held = MappingProxyType({"mask": 0})

    mask: Tensor

    def __init__(self, values: Tensor, mask: Tensor, shape: tuple[int, int]) -> None:
        super().__init__()
        require_vector(values, "Bitmap.values")
        wanted = (packed_width(shape[0] * shape[1], 1),)
        if mask.dtype != torch.uint8 or tuple(mask.shape) != wanted:
            raise ValueError(f"Bitmap.mask must be uint8 of shape {wanted}, got {mask.dtype}")
        self.shape = (shape[0], shape[1])
        self.values = leaf(values)
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return apply_dense(self, x)

    def dense(self) -> Tensor:
        out, into = self.shape
        held = unpack(self.mask, 1, out * into).view(out, into).bool()
        return self.values.new_zeros(out, into).masked_scatter(held, self.values)

    def flops(self, tokens: int) -> int:
        return 2 * tokens * self.shape[0] * self.shape[1]


def smallest_sparse(weight: Tensor, kept: Tensor) -> Bitmap | Sparse:
    """`weight` (out, in) where `kept` (out, in) bool is True, in the form of the fewest bytes."""
    if bitmap_is_smaller(int(kept.sum()), weight.numel()):
        values = weight.detach()[kept]
        return Bitmap(values, pack(kept.flatten().byte(), 1), (weight.shape[0], weight.shape[1]))
    return sparsify(weight, kept)


def bitmap_is_smaller(count: int, places: int) -> bool:
    """Whether a bit for each of the places takes fewer bytes than an index for each number."""
    return packed_width(places, 1) < count * place_bytes(places)


def place_bytes(places: int) -> int:
    """Bytes of an index into so many places, as a `Sparse` stores it."""
    return 4 if places <= 2**31 else 8


@adjoint.register
def _adjoint(op: Bitmap, x: Tensor) -> Tensor:
    return apply_dense(op, x, transposed=True)


@dense_flops.register
def _dense_flops(op: Bitmap) -> int:
    return 0
