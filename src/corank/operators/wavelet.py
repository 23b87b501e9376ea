from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from .operator import Operator
from .skeleton import storable
from .transpose import adjoint


@storable
@final
class Wavelet(Operator):
    """One level of the orthogonal wavelet transform of an even number of values, periodic.

    The first half of the output is smooth, sum over l of taps[l] x[2 k + l], the second the
    detail, with (-1)^l taps[L-1-l]. It is done on pairs of neighbours (polyphase form). It holds no
    leaf: `dense()` is in torch's default dtype.
    """

    def __init__(self, size: int, taps: Sequence[float]) -> None:
        super().__init__()
        if size % 2 or len(taps) % 2:
            raise ValueError(f"Wavelet: size {size} and {len(taps)} taps must both be even")
        self.shape = (size, size)
        self.size, self.taps = size, tuple(taps)

    def forward(self, x: Tensor) -> Tensor:
        pairs = x.unflatten(-1, (self.size // 2, 2))
        bands = sum(
            (pairs.roll(-lag, -2) @ phase.mT for lag, phase in enumerate(self._phases(x))),
            start=torch.zeros_like(pairs),
        )
        return bands.mT.flatten(-2)

    def dense(self) -> Tensor:
        return self(torch.eye(self.size, dtype=self.dtype)).mT

    def flops(self, tokens: int) -> int:
        return tokens * self.size * 2 * len(self.taps)

    def _phases(self, x: Tensor) -> Tensor:  # (lags, 2, 2): what each pair gives to both bands
        detail = [(-1) ** i * tap for i, tap in enumerate(reversed(self.taps))]
        taps = torch.tensor([self.taps, detail], dtype=x.dtype, device=x.device)
        return taps.unflatten(1, (-1, 2)).transpose(0, 1)


@adjoint.register
def _adjoint(op: Wavelet, x: Tensor) -> Tensor:
    bands = x.unflatten(-1, (2, op.size // 2)).mT
    pairs = sum(
        ((bands @ phase).roll(lag, -2) for lag, phase in enumerate(op._phases(x))),
        start=torch.zeros_like(bands),
    )
    return pairs.flatten(-2)
