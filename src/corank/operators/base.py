"""The weight that an adapter changes, referred to and not held."""

from __future__ import annotations

from typing import final

from torch import Tensor

from .cost import dense_flops
from .operator import Operator
from .precision import autocasts
from .skeleton import storable
from .transpose import adjoint


@storable
@final
class Base(Operator):
    """The weight of shape (out, in) that `Adapted` holds once for all its adapters.

    It has no leaves: its state, counts and skeleton are `Adapted`'s. x of another dtype is
    computed with in the weight's own, and the result returned in that of x.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shape = (shape[0], shape[1])
        self._bound: tuple[Operator, ...] = ()

    def bind(self, operator: Operator) -> Base:
        """Stand for `operator` from now on."""
        if operator.shape != self.shape:
            raise ValueError(
                f"an adapter made for {self.shape} does not fit a weight of {operator.shape}"
            )
        self._bound = (operator,)
        return self

    @property
    def bound(self) -> Operator:
        """What it stands for. Raises ValueError where nothing was bound."""
        if not self._bound:
            raise ValueError("this adapter stands on no weight yet: put it in an Adapted")
        return self._bound[0]

    @property
    def _referent(self) -> Operator | None:
        return self._bound[0] if self._bound else None

    def forward(self, x: Tensor) -> Tensor:
        op = self.bound
        dtype = x.dtype if autocasts(x.device) else op.dtype
        y: Tensor = op(x.to(dtype))
        return y if dtype == x.dtype else y.to(x.dtype)

    def dense(self) -> Tensor:
        return self.bound.dense()

    def flops(self, tokens: int) -> int:
        if not self._bound:  # built from a skeleton, and not yet in its place: taken to be dense
            return 2 * tokens * self.shape[0] * self.shape[1]
        return self.bound.flops(tokens)


@adjoint.register
def _adjoint(op: Base, x: Tensor) -> Tensor:
    return adjoint(op.bound, x)


@dense_flops.register
def _dense_flops(op: Base) -> int:
    return dense_flops(op.bound) if op._bound else 0
