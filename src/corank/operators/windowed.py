from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from .cost import dense_flops
from .operator import Operator, leaf, require_matrix
from .skeleton import storable
from .transpose import adjoint


@storable
@final
class Windowed(Operator):
    """b a whose every rank-one term stands on a window of rows and one of columns.

    `b` (out, r), `a` (r, in); `widths` and `starts` (2, r) are the windows of the rows, then of the
    columns, as shares of the side, rounded to whole places; windows go round at the end. Their
    edges are smoothed by a Gaussian of `sigma` in the frequencies, the wider the smaller it is, so
    that widths, even zero ones, and starts have gradients (the Gaussian-Dirichlet function of
    arXiv 2310.18882). The rounding is passed straight through.
    """

    def __init__(self, b: Tensor, a: Tensor, widths: Tensor, starts: Tensor, sigma: float) -> None:
        super().__init__()
        require_matrix(b, "Windowed.b")
        require_matrix(a, "Windowed.a")
        if b.shape[1] != a.shape[0] or not widths.shape == starts.shape == (2, a.shape[0]):
            shapes = ", ".join(str(tuple(t.shape)) for t in (b, a, widths, starts))
            raise ValueError(f"Windowed: b, a, widths and starts of shapes {shapes} do not fit")
        self.shape = (b.shape[0], a.shape[1])
        self.b, self.a = leaf(b), leaf(a)
        self.widths, self.starts = leaf(widths), leaf(starts)
        self.sigma = sigma

    def factors(self) -> tuple[Tensor, Tensor]:  # (out, r), (r, in)
        """b and a, multiplied by their windows."""
        rows, columns = (self._windows(side) for side in (0, 1))
        return self.b * rows.mT.to(self.b.dtype), self.a * columns.to(self.a.dtype)

    def forward(self, x: Tensor) -> Tensor:
        b, a = self.factors()
        return F.linear(F.linear(x, a), b)

    def dense(self) -> Tensor:
        b, a = self.factors()
        return b @ a

    def _windows(self, side: int) -> Tensor:  # (r, size)
        dtype = torch.promote_types(self.widths.dtype, torch.float32)
        size = self.shape[side]
        width, start = (
            _rounded(t[side, :, None].to(dtype), size) for t in (self.widths, self.starts)
        )
        k = torch.arange(size // 2 + 1, device=width.device, dtype=dtype)
        # The transform of a run of ones, w n long: at w = 0 it is zero, its derivative is not.
        turn = math.pi * k * (1 / size - width - 2 * start)
        height = width * torch.sinc(k * width) / torch.sinc(k / size)
        height = height * torch.exp(-0.5 * (k / self.sigma).square())
        return torch.fft.irfft(
            torch.polar(torch.ones_like(turn), turn) * height, size, norm="forward"
        )

    def flops(self, tokens: int) -> int:
        return 2 * tokens * self.a.shape[0] * sum(self.shape) + self._making()

    def _making(self) -> int:
        """The windows' transforms, 5 / 2 n log2 n for each, and their products with the factors."""
        logs = sum(5 * n * max(1, n.bit_length() - 1) // 2 + 10 * (n // 2 + 1) for n in self.shape)
        return self.a.shape[0] * (logs + sum(self.shape))


def _rounded(share: Tensor, size: int) -> Tensor:
    return share + ((share * size).round() / size - share).detach()


@adjoint.register
def _adjoint(op: Windowed, x: Tensor) -> Tensor:
    b, a = op.factors()
    return (x @ b) @ a


@dense_flops.register
def _dense_flops(op: Windowed) -> int:
    return op._making() + 2 * op.a.shape[0] * op.shape[0] * op.shape[1]
