"""Sharing the work of building operators over the ranks of torch.distributed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

from ..operators import Operator, build, describe

T = TypeVar("T")


def build_each(
    items: Sequence[T], make: Callable[[T], list[tuple[Operator, Any]]]
) -> list[list[tuple[Operator, Any]]]:
    """`make` of every item, each made on one rank and sent to the others.

    `make` returns operators, each with a plain value beside it. Item i is made by rank i modulo
    the number of ranks; without torch.distributed, all are made here. Collective. A rank that
    fails makes every rank raise.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return [make(item) for item in items]
    world, rank = dist.get_world_size(), dist.get_rank()
    made: dict[int, list[tuple[Operator, Any]]] = {}
    failure = None
    try:
        made = {i: make(items[i]) for i in range(rank, len(items), world)}
    except Exception as error:
        failure = error
    failures: list[Any] = [None] * world
    dist.all_gather_object(failures, None if failure is None else str(failure))
    if failure is not None:
        raise failure
    if any(failures):
        told = next(text for text in failures if text)
        raise RuntimeError(f"another rank could not factorise: {told}")
    return [_send(made.get(i), i % world) for i in range(len(items))]


def _send(made: list[tuple[Operator, Any]] | None, source: int) -> list[tuple[Operator, Any]]:
    """What `source` made, on every rank; leaves that it shared are shared again."""
    box: list[Any] = [None]
    if made is not None:
        device = str(made[0][0].device) if made else "cpu"
        box = [([(describe(op), value) for op, value in made], _aliases(made), device)]
    dist.broadcast_object_list(box, src=source)
    parts, aliases, device = box[0]
    if made is None:
        made = [(build(skeleton, device), value) for skeleton, value in parts]
        _share_again([op for op, _ in made], aliases)
    for tensor in {
        id(t): t for op, _ in made for t in op.state_dict(keep_vars=True).values()
    }.values():
        dist.broadcast(tensor.data, src=source)
    return made


def _aliases(made: list[tuple[Operator, Any]]) -> dict[tuple[int, str], tuple[int, str]]:
    first: dict[int, tuple[int, str]] = {}
    aliases = {}
    for i, (op, _) in enumerate(made):
        for name, leaf in op.named_parameters(remove_duplicate=False):
            original = first.setdefault(id(leaf), (i, name))
            if original != (i, name):
                aliases[i, name] = original
    return aliases


def _share_again(ops: list[Operator], aliases: dict[tuple[int, str], tuple[int, str]]) -> None:
    for (i, name), (j, original) in aliases.items():
        holder, _, leaf = name.rpartition(".")
        ops[i].get_submodule(holder)._parameters[leaf] = ops[j].get_parameter(original)
