"""Dropping dead ranks from leaves, optimisers and what a control remembers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..operators import LowRank, Operator

#: Operators of one adapter, or factorised at once, by "<site>", which begins their leaves' names,
#: and their controls' memory.
Held = tuple[Mapping[str, Operator], dict[str, Any]]


def cut(everything: Sequence[Held], optimizer: Optimizer | None = None) -> int:
    """Drop the ranks that are masked or gated to zero; the function stays. Returns how many.

    A factor that several products share keeps every rank that lives in one of them. What the
    optimiser and a memory (under "<what>:<leaf's name>") hold about a leaf is cut along with it.
    Raises ValueError for an optimiser state that does not follow the leaf's shape.
    """
    fresh: dict[int, nn.Parameter] = {}
    replaced: list[nn.Parameter] = []  # kept, so that no new leaf takes the id of an old one
    dropped = 0
    for group in _sharing([op for held, _ in everything for op in _low_ranks(held)]):
        alive = torch.stack([op.alive for op in group]).any(0)
        kept = alive.nonzero().squeeze(1)
        if kept.numel() == alive.numel():
            continue
        dropped += alive.numel() - kept.numel()
        for op in group:
            for name, axis in LowRank.rank_axes.items():
                leaf = getattr(op, name)
                if not isinstance(leaf, nn.Parameter):
                    continue
                if id(leaf) not in fresh:
                    replaced.append(leaf)
                    fresh[id(leaf)] = _cut_leaf(leaf, kept, axis)
                    _cut_state(optimizer, leaf, fresh[id(leaf)], kept, axis)
                    for operators, memory in everything:
                        _cut_memory(memory, _names(operators, leaf), leaf, kept, axis)
                setattr(op, name, fresh[id(leaf)])
            if op.mask is not None:
                op.mask = op.mask[kept]
    if optimizer is not None:
        for params in optimizer.param_groups:
            params["params"] = [fresh.get(id(p), p) for p in params["params"]]
    return dropped


def _low_ranks(operators: Mapping[str, Operator]) -> list[LowRank]:
    return [m for op in operators.values() for m in op.modules() if isinstance(m, LowRank)]


def _sharing(products: Iterable[LowRank]) -> list[list[LowRank]]:
    """The products, those that share a leaf together."""
    groups: list[tuple[set[int], list[LowRank]]] = []
    for op in products:
        ids, members = {id(p) for p in op.parameters()}, [op]
        apart = []
        for other_ids, others in groups:
            if ids & other_ids:
                ids, members = ids | other_ids, [*others, *(m for m in members if m not in others)]
            else:
                apart.append((other_ids, others))
        groups = [*apart, (ids, members)]
    return [members for _, members in groups]


def _names(operators: Mapping[str, Operator], leaf: nn.Parameter) -> set[str]:
    return {
        f"{site}/{name}"
        for site, op in operators.items()
        for name, other in op.named_parameters(remove_duplicate=False)
        if other is leaf
    }


def _cut_leaf(leaf: nn.Parameter, kept: Tensor, axis: int) -> nn.Parameter:
    smaller = nn.Parameter(leaf.detach().index_select(axis, kept), requires_grad=leaf.requires_grad)
    if leaf.grad is not None:
        smaller.grad = leaf.grad.index_select(axis, kept)
    return smaller


def _cut_state(
    optimizer: Optimizer | None, leaf: nn.Parameter, smaller: nn.Parameter, kept: Tensor, axis: int
) -> None:
    if optimizer is None or leaf not in optimizer.state:
        return
    state = optimizer.state.pop(leaf)
    optimizer.state[smaller] = {
        key: _cut_value(key, value, leaf, kept, axis) for key, value in state.items()
    }


def _cut_value(key: str, value: Any, leaf: Tensor, kept: Tensor, axis: int) -> Any:
    """A moment of the leaf's shape, or one of its rows or columns with an axis of 1; a counter."""
    if not isinstance(value, Tensor) or value.numel() <= 1:
        return value
    if value.ndim == leaf.ndim and value.shape[axis] == leaf.shape[axis]:
        return value.index_select(axis, kept)
    if value.ndim == leaf.ndim and value.shape[axis] == 1:
        return value
    raise ValueError(
        f"the optimiser's {key!r} of shape {tuple(value.shape)} does not follow a leaf of shape "
        f"{tuple(leaf.shape)} when ranks are dropped: compact before making the optimiser"
    )


def _cut_memory(
    memory: dict[str, Any], names: set[str], leaf: Tensor, kept: Tensor, axis: int
) -> None:
    for key, value in memory.items():
        about = key.partition(":")[2] in names
        if about and isinstance(value, Tensor) and value.shape == leaf.shape:
            memory[key] = value.index_select(axis, kept)
