"""Parameters sharded over processes (DTensors, as FSDP2 makes them).

Each matrix has an owner, which alone holds its state: it is given the whole weight and gradient,
takes the step, and gives each process its part of the new weight. Owners work at the same time.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .advancing import advance
from .state import fresh_state
from .transform import State, Transform


def is_sharded(t: Tensor) -> bool:
    """Whether t is a DTensor; without loading what makes them."""
    made = sys.modules.get("torch.distributed.tensor")
    return made is not None and isinstance(t, made.DTensor)


def local(t: Any) -> Any:
    """This process's part of a DTensor; any other tensor itself."""
    return t.to_local() if is_sharded(t) else t


def require_one_shard(p: Any, group: Mapping[str, Any], watched: bool) -> None:
    """Raise ValueError for what cannot be optimised in shards.

    That is: shards not over one dimension of processes, state in eight bits, and transforms that
    look at layers (`watched`), whose inputs each process has its own part of.
    """
    if is_sharded(p):
        if p.device_mesh.ndim != 1 or not p.placements[0].is_shard():
            raise ValueError(
                f"a parameter {tuple(p.shape)} is placed as {p.placements}: only shards over one "
                "dimension of processes (FSDP2 without replicas) can be optimised"
            )
        if watched:
            raise ValueError("an optimiser that looks at layers cannot take sharded parameters")
        if group["state_dtype"] == "int8":
            raise ValueError(
                "state_dtype 'int8' is not there for sharded parameters: take 'bfloat16'"
            )


def owners(params: Sequence[Any]) -> dict[Tensor, int]:
    """Who takes the step of which sharded matrix: the largest first, to whoever has least."""
    load: dict[int, int] = {}
    found: dict[Tensor, int] = {}
    for p in sorted((p for p in params if is_sharded(p)), key=lambda p: -p.numel()):
        owner = min(range(p.device_mesh.size()), key=lambda rank: load.get(rank, 0))
        load[owner] = load.get(owner, 0) + p.numel()
        found[p] = owner
    return found


def is_mine(p: Any, owner: Mapping[Tensor, int]) -> bool:
    """Whether this process takes the step of p."""
    return p not in owner or owner[p] == dist.get_rank(p.device_mesh.get_group())


def first_state(
    p: Any, group: dict[str, Any], transform: Transform, owner: Mapping[Tensor, int]
) -> State:
    """`fresh_state`; where another process owns p, only the count of its steps."""
    if p not in owner:
        return fresh_state(p, group, transform)
    if not is_mine(p, owner):
        return {"step": 0}
    whole = torch.empty(p.shape, dtype=p.dtype, device=p.device)
    return fresh_state(whole, group, transform)


def advance_sharded(
    params: Sequence[Any],
    group: dict[str, Any],
    transform: Transform,
    states: Mapping[Tensor, State],
    places: Mapping[Tensor, int],
    owner: Mapping[Tensor, int],
) -> None:
    """As `advance`; in rounds, of one matrix for each process."""
    queues = [[p for p in params if owner[p] == rank] for rank in sorted(set(owner.values()))]
    for turn in zip_longest(*queues):
        here = [p for p in turn if p is not None]
        wholes = [_whole(p, owner[p]) for p in here]
        for p, whole in zip(here, wholes, strict=True):
            if whole is None:
                states[p]["step"] += 1
            else:
                own = {whole if q is p else q: place for q, place in places.items()}
                advance([whole], group, transform, {whole: states[p]}, own)
        for p, whole in zip(here, wholes, strict=True):
            _give_back(p, whole, owner[p])


def _whole(p: Any, owner: int) -> nn.Parameter | None:
    """On the owner, the weight with its gradient; elsewhere None."""
    weight, grad = _gathered(p, p, owner), _gathered(p.grad, p, owner)
    if weight is None:
        return None
    found = nn.Parameter(weight)
    found.grad = grad
    return found


def _rows(p: Any) -> tuple[int, int]:
    """The dimension that is sharded, and the most that one process has of it."""
    dim = p.placements[0].dim
    return dim, -(-p.shape[dim] // p.device_mesh.size())


def _padded(part: Tensor, rows: int) -> Tensor:
    whole = part.new_zeros(rows, *part.shape[1:])
    whole[: part.shape[0]] = part
    return whole


def _gathered(t: Any, p: Any, owner: int) -> Tensor | None:
    (dim, rows), group = _rows(p), p.device_mesh.get_group()
    mine = _padded(local(t).movedim(dim, 0), rows)
    parts = None
    if dist.get_rank(group) == owner:
        parts = [torch.empty_like(mine) for _ in range(p.device_mesh.size())]
    dist.gather(mine, parts, group=group, group_dst=owner)
    return None if parts is None else torch.cat(parts)[: p.shape[dim]].movedim(0, dim).contiguous()


def _give_back(p: Any, whole: Tensor | None, owner: int) -> None:
    (dim, rows), group = _rows(p), p.device_mesh.get_group()
    mine = local(p).movedim(dim, 0)
    parts, found = None, mine.new_empty(rows, *mine.shape[1:])
    if whole is not None:
        all_rows = _padded(whole.detach().movedim(dim, 0), rows * p.device_mesh.size())
        parts = list(all_rows.split(rows))
    dist.scatter(found, parts, group=group, group_src=owner)
    mine.copy_(found[: mine.shape[0]])


def share_state(state: State, like: State, p: Any, owner: int) -> State:
    """The owner's state, on every process. `like`: what there is, on the meta device."""
    group = p.device_mesh.get_group()
    shared: State = {}
    mine = dist.get_rank(group) == owner
    for name, value in like.items():
        if isinstance(value, Tensor):
            own = state[name].to(p.device) if mine else torch.empty_like(value, device=p.device)
            dist.broadcast(own, group=group, group_src=owner)
            shared[name] = own.to(state[name].device) if mine else own
        else:
            number = torch.tensor(float(state[name]) if mine else 0.0, dtype=torch.float64)
            number = number.to(p.device)
            dist.broadcast(number, group=group, group_src=owner)
            shared[name] = type(value)(number.item())
    return shared
