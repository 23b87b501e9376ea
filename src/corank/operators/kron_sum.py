from __future__ import annotations

from math import prod
from typing import final

import torch
from torch import Tensor

from .cost import dense_flops
from .operator import Operator, leaf
from .skeleton import storable
from .transpose import adjoint


@storable
@final
class KronSum(Operator):
    """p_1 (x) q_1 + ... + p_r (x) q_r. `p` (r, p_out, p_in), `q` (r, q_out, q_in).

    With `a` (r, rank, q_in) the right factors are q_i a_i, of that rank. Two products do it, from
    the side that costs less: neither the sum nor a term of it is formed.
    """

    def __init__(self, p: Tensor, q: Tensor, a: Tensor | None = None) -> None:
        super().__init__()
        given = [t for t in (p, q, a) if t is not None]
        fits = all(t.ndim == 3 and t.shape[0] == p.shape[0] for t in given)
        if not fits or (a is not None and a.shape[1] != q.shape[2]):
            shapes = ", ".join(str(tuple(t.shape)) for t in given)
            raise ValueError(
                "KronSum needs p (r, ., .), q (r, ., .) and, where given, a (r, columns of q, .), "
                f"got {shapes}"
            )
        last = q if a is None else a
        self.shape = (p.shape[1] * q.shape[1], p.shape[2] * last.shape[2])
        self.p, self.q = leaf(p), leaf(q)
        self.a = None if a is None else leaf(a)

    def right(self) -> Tensor:
        """The right factors, (r, q_out, q_in)."""
        return self.q if self.a is None else self.q @ self.a

    def forward(self, x: Tensor) -> Tensor:
        return _multiply(self.p, self.right(), x)

    def dense(self) -> Tensor:
        blocks = torch.einsum("rij,rkl->ikjl", self.p, self.right())
        return blocks.reshape(self.shape)

    def flops(self, tokens: int) -> int:
        return self._right_flops() + min(_costs(self.p.shape, self._right_shape(), tokens))

    def _right_shape(self) -> torch.Size:
        return torch.Size((*self.q.shape[:2], (self.q if self.a is None else self.a).shape[2]))

    def _right_flops(self) -> int:
        return 0 if self.a is None else 2 * self.q.numel() * self.a.shape[2]


def _multiply(p: Tensor, q: Tensor, x: Tensor) -> Tensor:
    lead, (r, i, j), (_, k, m) = x.shape[:-1], p.shape, q.shape
    x = x.reshape(prod(lead), j, m)
    right_first, left_first = _costs(p.shape, q.shape, 1)
    if right_first <= left_first:
        z = x @ q.permute(2, 0, 1).reshape(m, r * k)  # (tokens, j, r k)
        left = p.permute(1, 2, 0).reshape(i, j * r)
        y = left @ z.reshape(prod(lead), j * r, k)
    else:
        z = p.reshape(r * i, j) @ x  # (tokens, r i, m)
        z = z.unflatten(1, (r, i)).transpose(1, 2).flatten(2)  # (tokens, i, r m)
        y = z @ q.transpose(1, 2).reshape(r * m, k)
    return y.reshape(*lead, i * k)


def _costs(p: torch.Size, q: torch.Size, tokens: int) -> tuple[int, int]:
    (r, i, j), (_, k, m) = p, q
    return 2 * tokens * r * j * k * (m + i), 2 * tokens * r * i * m * (j + k)


@adjoint.register
def _adjoint(op: KronSum, x: Tensor) -> Tensor:
    return _multiply(op.p.mT, op.right().mT, x)


@dense_flops.register
def _dense_flops(op: KronSum) -> int:
    return op._right_flops() + 2 * op.p.shape[0] * op.shape[0] * op.shape[1]
