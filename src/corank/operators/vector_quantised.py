from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from .cost import dense_flops
from .operator import Operator, leaf
from .packing import packed_width, unpack
from .skeleton import storable
from .through import apply_dense
from .transpose import adjoint


@storable
@final
class VectorQuantised(Operator):
    """A matrix whose neighbours in a row, `length` at a time, are vectors of a codebook.

    - `codebooks` (k, 2**bits, length): the i-th serves `rows` rows from i * rows on;
    - `codes` (out, ceil(ceil(in / length) bits / 8)) uint8: the vectors' indices, of `bits` bits
      (1 to 8), packed row by row as in `packing.pack`. The last vector of a row may hang over.

    The backward pass looks the vectors up again instead of keeping the matrix.
    """

    codes: Tensor

    def __init__(
        self, codes: Tensor, codebooks: Tensor, shape: tuple[int, int], bits: int, rows: int
    ) -> None:
        super().__init__()
        out, into = shape
        if codebooks.ndim != 3 or not codebooks.is_floating_point() or rows < 1:
            raise ValueError("VectorQuantised: codebooks are floats (k, 2**bits, length), rows > 0")
        wanted = (-(-out // rows), 2**bits)
        if tuple(codebooks.shape[:2]) != wanted:
            raise ValueError(
                f"VectorQuantised.codebooks must be {wanted} vectors, "
                f"got {tuple(codebooks.shape[:2])}"
            )
        self._across = -(-into // codebooks.shape[2])
        held = (out, packed_width(self._across, bits))
        if codes.dtype != torch.uint8 or tuple(codes.shape) != held:
            kind = f"{codes.dtype} of shape {tuple(codes.shape)}"
            raise ValueError(f"VectorQuantised.codes must be uint8 of shape {held}, got {kind}")
        self.shape, self.bits, self.rows = (out, into), bits, rows
        self.numbers_held = {"codes": out * self._across}
        self.codebooks = leaf(codebooks)
        self.register_buffer("codes", codes)

    def forward(self, x: Tensor) -> Tensor:
        return apply_dense(self, x)

    def dense(self) -> Tensor:
        return self.look_up(self.codebooks)[:, : self.shape[1]]

    def look_up(self, codebooks: Tensor) -> Tensor:
        """The vectors of other codebooks of the same shape, (out, in) but for what hangs over."""
        codes = unpack(self.codes, self.bits, self._across).int()
        book = torch.arange(self.shape[0], device=codes.device, dtype=torch.int32) // self.rows
        places = codes + (book * 2**self.bits)[:, None]
        vectors = codebooks.flatten(0, 1).index_select(0, places.flatten())
        return vectors.view(self.shape[0], -1)

    def flops(self, tokens: int) -> int:
        return dense_flops(self) + 2 * tokens * self.shape[0] * self.shape[1]


@adjoint.register
def _adjoint(op: VectorQuantised, x: Tensor) -> Tensor:
    return apply_dense(op, x, transposed=True)


@dense_flops.register
def _dense_flops(op: VectorQuantised) -> int:
    return 0
