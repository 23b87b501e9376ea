"""Tensors that stay of low Tucker rank: each mode's basis grows by a step, then the core is cut."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..operators import BlockColumns, Dense, Operator, Sum, Tucker
from .conditioned import matrix, orthonormal, wide
from .control import Training
from .replacing import replace


class Mode(NamedTuple):
    """One mode's orthonormal basis, what is beside it, and what K = U S has moved by."""

    basis: nn.Parameter  # (n, r)
    more: nn.Parameter | None  # (n, min(r, n - r)), where the basis is not all of the space
    moved: nn.Parameter | None  # (n, r), likewise; narrower where the other modes are


def hosvd(tensor: Tensor, ranks: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """The core and the orthonormal bases of a tensor's leading subspaces, mode by mode."""
    bases = [
        torch.linalg.svd(_unfold(tensor, mode), full_matrices=False).U[:, :rank]
        for mode, rank in enumerate(ranks)
    ]
    return _times(tensor, [basis.mT for basis in bases]), bases


def flowing(core: Tensor, bases: Sequence[Tensor]) -> Operator:
    """The operator of a Tucker tensor whose bases can grow: itself, and a term for each K."""
    ranks, sizes = core.shape, [len(basis) for basis in bases]
    held = [nn.Parameter(basis.contiguous(), requires_grad=False) for basis in bases]
    room = [min(_inner(ranks, m), n - ranks[m]) for m, n in enumerate(sizes)]
    padded = core.new_zeros([r + more for r, more in zip(ranks, room, strict=True)])
    padded[tuple(slice(r) for r in ranks)] = core
    factors = [
        BlockColumns(Dense(u), Dense(u.new_zeros(len(u), more))) if more else Dense(u)
        for u, more in zip(held, room, strict=True)
    ]
    terms: list[Operator] = [Tucker(*factors, core=nn.Parameter(padded))]
    for mode, more in enumerate(room):
        if more:
            moved = nn.Parameter(core.new_zeros(sizes[mode], _inner(ranks, mode)))
            others = [Dense(moved if m == mode else u) for m, u in enumerate(held)]
            terms.append(Tucker(*others, core=_orthogonal_core(core, mode)))
    return Sum(*terms)


def take_turns(training: Training) -> None:
    """Before a step: of every two steps, the first moves the K and the second the core."""
    for op in training.operators.values():
        if isinstance(op, Sum):
            core, modes = _read(op)
            moved = [mode.moved for mode in modes if mode.moved is not None]
            for leaf in (core,) if training.step % 2 == 0 else moved:
                leaf.grad = None


def integrate(training: Training, tolerance: float, least: int) -> None:
    """After a step: add the K's directions to the bases, or cut what the core does not need.

    At the planned end each weight becomes a plain Tucker tensor.
    """
    ends = training.total is not None and training.step >= training.total
    for site, op in list(training.operators.items()):
        if not isinstance(op, Sum):
            continue
        core, modes = _read(op)
        if training.step % 2 and not ends:
            _extend(modes)
            continue
        bases = [m.basis if m.more is None else torch.cat((m.basis, m.more), 1) for m in modes]
        small, turned = _cut(core, bases, tolerance, least)
        if ends:
            factors = [Dense(nn.Parameter(basis)) for basis in turned]
            replace(training, site, Tucker(*factors, core=nn.Parameter(small)))
        elif small.shape != _ranks(modes):
            replace(training, site, flowing(small, turned))
        else:
            _settle(op, flowing(small, turned))


def _ranks(modes: Sequence[Mode]) -> torch.Size:
    return torch.Size(mode.basis.shape[1] for mode in modes)


def _settle(op: Operator, new: Operator) -> None:
    """Give the leaves the values of `new`'s, which is of their shapes."""
    for leaf, value in zip(op.parameters(), new.parameters(), strict=True):
        leaf.copy_(value)


def _read(op: Sum) -> tuple[nn.Parameter, list[Mode]]:
    main, *terms = op.operators
    assert isinstance(main, Tucker)
    left, modes = list(terms), []
    for number, factor in enumerate(main.operators):
        if isinstance(factor, BlockColumns):
            basis, more = map(matrix, factor.operators)
            term = left.pop(0)
            assert isinstance(term, Tucker)
            modes.append(Mode(basis, more, matrix(term.operators[number])))
        else:
            modes.append(Mode(matrix(factor), None, None))
    return main.core, modes


def _extend(modes: Sequence[Mode]) -> None:
    for basis, more, moved in modes:
        if more is not None and moved is not None:
            both = orthonormal(torch.cat((basis, moved), 1))
            basis.copy_(both[:, : basis.shape[1]])
            more.copy_(both[:, basis.shape[1] : basis.shape[1] + more.shape[1]])
            moved.zero_()


def _cut(
    core: Tensor, bases: Sequence[Tensor], tolerance: float, least: int
) -> tuple[Tensor, list[Tensor]]:
    """The core and bases of the fewest ranks whose modes each lose at most `tolerance` of it."""
    turns = []
    for mode, basis in enumerate(bases):
        u, values, _ = torch.linalg.svd(_unfold(wide(core), mode), full_matrices=False)
        tails = values.square().flip(0).cumsum(0).flip(0).sqrt()
        kept = int((tails > tolerance * tails[0]).sum())
        turns.append(u[:, : max(kept, min(least, len(values), len(basis)))])
    small = _times(wide(core), [turn.mT for turn in turns]).to(core.dtype)
    turned = [(wide(b) @ turn).to(b.dtype) for b, turn in zip(bases, turns, strict=True)]
    return small.contiguous(), turned


def _orthogonal_core(core: Tensor, mode: int) -> Tensor:
    """The core with orthonormal rows in its unfolding of that mode: what K is multiplied by."""
    q = torch.linalg.qr(wide(_unfold(core, mode)).mT).Q.mT.to(core.dtype)
    others = [size for m, size in enumerate(core.shape) if m != mode]
    return q.reshape(-1, *others).movedim(0, mode)


def _inner(ranks: Sequence[int], mode: int) -> int:
    """How many columns K has: the mode's rank, or the others' product if that is less."""
    return min(ranks[mode], prod(ranks) // ranks[mode])


def _unfold(tensor: Tensor, mode: int) -> Tensor:
    return tensor.movedim(mode, 0).flatten(1)


def _times(tensor: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """The tensor times one matrix in each of its modes."""
    for one in matrices:
        tensor = torch.tensordot(tensor, one, dims=([0], [1]))
    return tensor
