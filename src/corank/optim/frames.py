"""What spans a small space: how gradients go down into it and updates come up again."""

from __future__ import annotations

import abc
from typing import final

import torch
from torch import Tensor

from .transform import Now, State


class Frame(abc.ABC):
    """r vectors in `a` dimensions; matrices are (..., a, b) above and (..., r, b) below.

    What comes up lies in memory as the gradient x does, for which the frame was made: sums of both
    then need not jump from row to row.
    """

    @abc.abstractmethod
    def down(self, x: Tensor) -> Tensor:
        """Pᵀ X."""

    @abc.abstractmethod
    def up(self, r: Tensor) -> Tensor:
        """P R."""


@final
class Columns(Frame):
    """The columns of a matrix P (..., a, r), or of one for all in the last dimension of a stack."""

    def __init__(self, matrix: Tensor, x: Tensor) -> None:
        self.matrix = matrix if matrix.ndim == x.ndim else matrix.unsqueeze(-3)
        self.transposed = _is_transposed(x)

    def down(self, x: Tensor) -> Tensor:
        return self.matrix.mT @ x

    def up(self, r: Tensor) -> Tensor:
        return (r.mT @ self.matrix.mT).mT if self.transposed else self.matrix @ r


def kept(x: Tensor, state: State, now: Now) -> Frame:
    """The columns of the matrix that the state keeps."""
    return Columns(state["basis"].to(x.dtype), x)


@final
class Rows(Frame):
    """Chosen rows (..., r) of x (..., a, b): nothing is multiplied."""

    def __init__(self, index: Tensor, x: Tensor) -> None:
        self.index, self.size = index.long(), x.shape[-2]
        self.transposed = _is_transposed(x)

    def _spread(self, columns: int) -> Tensor:
        return self.index.unsqueeze(-1).expand(*self.index.shape, columns)

    def down(self, x: Tensor) -> Tensor:
        return x.gather(-2, self._spread(x.shape[-1]))

    def up(self, r: Tensor) -> Tensor:
        lead, columns = r.shape[:-2], r.shape[-1]
        if self.transposed:
            above = r.new_zeros(*lead, columns, self.size).mT
        else:
            above = r.new_zeros(*lead, self.size, columns)
        return above.scatter_(-2, self._spread(columns), r)


def turn(new: Frame, old: Frame, like: Tensor, rank: int) -> Tensor:
    """P_newᵀ P_old (..., r, r): the old coordinates in the new ones."""
    if isinstance(new, Columns) and isinstance(old, Columns):
        return new.matrix.mT @ old.matrix
    eye = torch.eye(rank, dtype=like.dtype, device=like.device)
    return new.down(old.up(eye.expand(*like.shape[:-2], rank, rank)))


def _is_transposed(x: Tensor) -> bool:
    return x.stride(-2) < x.stride(-1)
