from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from .cost import dense_flops
from .operator import Operator, leaf, require_matrix, require_vector
from .packing import pack
from .quantised import Quantised
from .skeleton import storable
from .through import apply_dense
from .transpose import adjoint


@storable
@final
class Signs(Operator):
    """diag(scale) sign(latent): one bit for each number, of which the latent number trains.

    `latent` (out, in), `scale` (out,). Zero counts as negative. The backward pass goes through the
    signs as through the identity for a `slope` of 0, as through tanh(slope x) otherwise.
    Settles as codes of one bit.
    """

    def __init__(self, latent: Tensor, scale: Tensor, slope: float = 0.0) -> None:
        super().__init__()
        require_matrix(latent, "Signs.latent")
        require_vector(scale, "Signs.scale", latent.shape[0])
        self.shape = (latent.shape[0], latent.shape[1])
        self.latent, self.scale, self.slope = leaf(latent), leaf(scale), slope

    def forward(self, x: Tensor) -> Tensor:
        return apply_dense(self, x)

    def dense(self) -> Tensor:
        signs = torch.where(self.latent > 0, 1.0, -1.0).to(self.latent.dtype)
        soft = torch.tanh(self.slope * self.latent) if self.slope else self.latent
        return self.scale[:, None] * (signs.detach() + (soft - soft.detach()))

    def flops(self, tokens: int) -> int:
        return dense_flops(self) + 2 * tokens * self.shape[0] * self.shape[1]

    def settled(self) -> Quantised:
        latent, scale = self.latent.detach(), self.scale.detach().clone()
        levels = torch.tensor([-1.0, 1.0], dtype=scale.dtype, device=scale.device)
        codes = pack((latent > 0).to(torch.uint8), 1)
        return Quantised(codes, scale[:, None], self.shape, 1, self.shape[1], levels=levels)


@adjoint.register
def _adjoint(op: Signs, x: Tensor) -> Tensor:
    return apply_dense(op, x, transposed=True)


@dense_flops.register
def _dense_flops(op: Signs) -> int:
    return 2 * op.shape[0] * op.shape[1]
