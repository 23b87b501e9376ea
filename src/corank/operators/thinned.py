from __future__ import annotations

from typing import final

from torch import Tensor

from ..linalg import n_of_m
from .cost import dense_flops
from .operator import Operator, leaf, require_matrix
from .semi_structured import SemiStructured, thin
from .skeleton import storable
from .through import apply_dense
from .transpose import adjoint


@storable
@final
class Thinned(Operator):
    """`latent` (out, in) at the `kept` largest of every `group` neighbours in a row, else zero.

    Which they are is looked up in every pass. The backward pass goes straight through to all, so
    that those left out can come in. Settles as a `SemiStructured`.
    """

    def __init__(self, latent: Tensor, kept: int, group: int) -> None:
        super().__init__()
        require_matrix(latent, "Thinned.latent")
        if not 1 <= kept <= group or latent.shape[1] % group:
            raise ValueError(
                f"Thinned: {kept} of every {group} do not fit rows of {latent.shape[1]}"
            )
        self.shape = (latent.shape[0], latent.shape[1])
        self.latent, self.kept, self.group = leaf(latent), kept, group

    def forward(self, x: Tensor) -> Tensor:
        return apply_dense(self, x)

    def dense(self) -> Tensor:
        latent = self.latent.detach()
        hard = latent * n_of_m(latent.abs(), self.kept, self.group).to(latent.dtype)
        return hard + (self.latent - latent)

    def flops(self, tokens: int) -> int:
        return dense_flops(self) + 2 * tokens * self.shape[0] * self.shape[1]

    def settled(self) -> SemiStructured:
        latent = self.latent.detach()
        return thin(latent, n_of_m(latent.abs(), self.kept, self.group), self.group)


@adjoint.register
def _adjoint(op: Thinned, x: Tensor) -> Tensor:
    return apply_dense(op, x, transposed=True)


@dense_flops.register
def _dense_flops(op: Thinned) -> int:
    return op.shape[0] * op.shape[1]
