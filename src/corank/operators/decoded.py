from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from .cost import dense_flops
from .operator import Operator, leaf, parts, require_operators, require_vector
from .precision import without_autocast
from .skeleton import storable
from .through import apply_dense
from .transpose import adjoint


@storable
@final
class Decoded(Operator):
    """diag(scale) D: a matrix D that a small convolutional network makes of latent vectors.

    `latents` is a matrix (h w, c): one vector of c channels for each place of an h x w image, row
    by row. Every kernel (4 c', c k^2) but the last convolves (k odd, edges filled with zeros),
    doubles height and width by sorting its channels into space, and applies GELU; the last, (1,
    c k^2), leaves one channel, of which D (out, in) is the upper left part. `scale` (out,).
    """

    kernels: Sequence[Operator]

    def __init__(
        self, *kernels: Operator, latents: Operator, scale: Tensor, shape: tuple[int, int]
    ) -> None:
        super().__init__()
        require_operators((latents, *kernels), "Decoded")
        out, into = shape
        require_vector(scale, "Decoded.scale", out)
        factor = 2 ** (len(kernels) - 1)
        self._places = (-(-out // factor), -(-into // factor))
        places, channels = latents.shape
        if places != math.prod(self._places):
            raise ValueError(f"Decoded: {places} latents are no {self._places} of them")
        for i, kernel in enumerate(kernels):
            side = math.isqrt(kernel.shape[1] // channels)
            more = 4 if i + 1 < len(kernels) else 1
            if channels * side**2 != kernel.shape[1] or side % 2 == 0 or kernel.shape[0] % more:
                raise ValueError(
                    f"Decoded: kernel {i} of {kernel.shape} reads no {channels} channels"
                )
            channels = kernel.shape[0] // more
        if channels != 1:
            raise ValueError(f"Decoded: the last kernel leaves {channels} channels, not one")
        self.shape = (out, into)
        self.latents, self.scale = latents, leaf(scale)
        self.kernels = parts(kernels)

    def forward(self, x: Tensor) -> Tensor:
        return apply_dense(self, x)

    def dense(self) -> Tensor:
        wide = torch.promote_types(self.scale.dtype, torch.float32)
        with without_autocast(self.device):
            latents = self.latents.dense().to(wide)
            kernels = [kernel.dense().to(wide) for kernel in self.kernels]
            image = decode(latents, kernels, self._places)
            matrix = image[: self.shape[0], : self.shape[1]] * self.scale.to(wide)[:, None]
        return matrix.to(self.scale.dtype)

    def flops(self, tokens: int) -> int:
        return dense_flops(self) + 2 * tokens * self.shape[0] * self.shape[1]


def decode(latents: Tensor, kernels: Sequence[Tensor], places: tuple[int, int]) -> Tensor:
    """The image (h 2^n, w 2^n) of latents (h w, c) by n + 1 kernels, as in `Decoded`."""
    x = latents.mT.reshape(1, -1, *places)
    for i, kernel in enumerate(kernels):
        side = math.isqrt(kernel.shape[1] // x.shape[1])
        x = F.conv2d(x, kernel.view(len(kernel), x.shape[1], side, side), padding=side // 2)
        if i + 1 < len(kernels):
            x = F.gelu(F.pixel_shuffle(x, 2))
    return x[0, 0]


@adjoint.register
def _adjoint(op: Decoded, x: Tensor) -> Tensor:
    return apply_dense(op, x, transposed=True)


@dense_flops.register
def _dense_flops(op: Decoded) -> int:
    made = dense_flops(op.latents) + sum(dense_flops(kernel) for kernel in op.kernels)
    places = math.prod(op._places)
    return made + sum(
        2 * places * 4**i * math.prod(kernel.shape) for i, kernel in enumerate(op.kernels)
    )
