"""What spans a small space: how gradients go down into it and updates come up again."""

from __future__ import annotations

import abc
from typing import final

import torch
from torch import Tensor


class Frame(abc.ABC):
    """r vectors in `a` dimensions; matrices are (..., a, b) above and (..., r, b) below."""

    @abc.abstractmethod
    def down(self, x: Tensor) -> Tensor:
        """Pᵀ X."""

    @abc.abstractmethod
    def up(self, r: Tensor) -> Tensor:
        """P R."""


@final
class Columns(Frame):
    """The columns of a matrix P (..., a, r)."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def down(self, x: Tensor) -> Tensor:
        return self.matrix.mT @ x

    def up(self, r: Tensor) -> Tensor:
        return self.matrix @ r


@final
class Rows(Frame):
    """Chosen rows (..., r) of the `size` that there are: nothing is multiplied."""

    def __init__(self, index: Tensor, size: int) -> None:
        self.index, self.size = index.long(), size

    def _spread(self, columns: int) -> Tensor:
        return self.index.unsqueeze(-1).expand(*self.index.shape, columns)

    def down(self, x: Tensor) -> Tensor:
        return x.gather(-2, self._spread(x.shape[-1]))

    def up(self, r: Tensor) -> Tensor:
        above = r.new_zeros(*r.shape[:-2], self.size, r.shape[-1])
        return above.scatter(-2, self._spread(r.shape[-1]), r)


def turn(new: Frame, old: Frame, like: Tensor, rank: int) -> Tensor:
    """P_newᵀ P_old (..., r, r): the old coordinates in the new ones."""
    if isinstance(new, Columns) and isinstance(old, Columns):
        return new.matrix.mT @ old.matrix
    eye = torch.eye(rank, dtype=like.dtype, device=like.device)
    return new.down(old.up(eye.expand(*like.shape[:-2], rank, rank)))
