"""One step of several parameters, those that take the same step as one stack."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from .eight_bits import pack, unpack
from .matrices import as_matrix
from .tracing import unrolled
from .transform import Now, State, Transform
from .watching import Sight

#: Numbers in a stack: copies pay while they stay in a processor's cache; elsewhere, calls are dear.
_ROOM_ON_CPU, _ROOM = 2**17, 2**24


@unrolled
def advance(
    params: Iterable[Tensor],
    group: dict[str, Any],
    transform: Transform,
    states: Mapping[Tensor, State],
    places: Mapping[Tensor, int],
    sights: Mapping[Tensor, Sight] = MappingProxyType({}),
) -> None:
    """Take the step of parameters of one group, which have gradients and states."""
    teams: dict[Hashable, list[tuple[Tensor, Now]]] = {}
    for p in params:
        state = states[p]
        state["step"] += 1
        sight = sights.get(p)
        seen = {} if sight is None else sight.taken(state["step"], group.get("every", 1))
        now = Now(state["step"], places.get(p, 0), len(places), group, as_matrix(p, group), seen)
        company = transform.company(state, now)
        numbers = tuple(v for v in state.values() if not isinstance(v, Tensor))
        key = p if company is None else (company, numbers, p.shape, p.dtype, p.device)
        teams.setdefault(key, []).append((p, now))
    for team in teams.values():
        for some in _cut(team):
            _take(some, transform, states)


def _cut(team: list[tuple[Tensor, Now]]) -> Iterator[list[tuple[Tensor, Now]]]:
    first = team[0][0]
    room = _ROOM_ON_CPU if first.device.type == "cpu" else _ROOM
    most = max(1, room // first.numel())
    for i in range(0, len(team), most):
        yield team[i : i + most]


@unrolled
def _take(
    team: list[tuple[Tensor, Now]], transform: Transform, states: Mapping[Tensor, State]
) -> None:
    params, now = [p for p, _ in team], team[0][1]
    group = now.options
    dtype = torch.float64 if params[0].dtype == torch.float64 else torch.float32
    grads = [as_matrix(p.grad.to(dtype), group) for p in params]  # type: ignore[union-attr]
    if len(team) == 1:
        state = states[params[0]]
        direction, following = transform.update(grads[0], unpack(state), now)
        state.update(pack(following, state))
        directions = [direction]
    else:
        now = Now(now.step, now.slot, now.slots, group, grads[0].new_empty(0))
        directions = _update_stack(grads, [states[p] for p in params], transform, now)
    lr = float(group["lr"])
    if group["weight_decay"]:
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
    moves = [d.reshape(p.shape) for p, d in zip(params, directions, strict=True)]
    torch._foreach_add_(params, moves, alpha=-lr)


@unrolled
def _update_stack(
    grads: list[Tensor], states: list[State], transform: Transform, now: Now
) -> list[Tensor]:
    stacked = {
        name: torch.stack([s[name] for s in states]) if isinstance(value, Tensor) else value
        for name, value in states[0].items()
    }
    direction, following = transform.update(torch.stack(grads), unpack(stacked), now)
    for name, value in pack(following, stacked).items():
        if not isinstance(value, Tensor):
            for state in states:
                state[name] = value
        elif value is not stacked[name] or value._version:  # else nobody wrote into it
            torch._foreach_copy_([s[name] for s in states], list(value.unbind()))
    return list(direction.unbind())
