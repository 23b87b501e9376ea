"""What becomes of a gradient on its way to an update: functions over a state of tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

#: Named tensors and plain numbers, nothing else: what `torch.load(weights_only=True)` reads.
State: TypeAlias = "dict[str, Any]"


@dataclass(frozen=True)
class Now:
    """Where a parameter stands when its gradient is transformed.

    A stack of several parameters has the place of its first and no weight.
    """

    step: int  #: this step's number among the parameter's own, from 1
    slot: int  #: the parameter's place among those that are projected
    slots: int  #: how many are projected
    options: Mapping[str, Any]  #: its group: betas, eps ...
    weight: Tensor  #: the parameter, of the whole gradient's shape
    seen: State = field(default_factory=dict)  #: what `Transform.watch` saw since the last step

    def generator(self, purpose: str, epoch: int) -> torch.Generator:
        """Seeded from the group's seed, the slot, what it is for and when."""
        text = f"{self.options.get('seed', 0)}:{self.slot}:{purpose}:{epoch}"
        digest = hashlib.sha256(text.encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _as_it_was(state: State, turn: Tensor) -> State:
    return state


def _alone(state: State, now: Now) -> Hashable:
    return None


def anybody(state: State, now: Now) -> Hashable:
    """A transform's company where it has no regard to whose gradient it is given."""
    return 0


@dataclass(frozen=True)
class Transform:
    """`start(like)` is the state before the first gradient, known on the meta device too.

    `update(gradient, state, now)` gives the direction to descend along and the next state; it may
    overwrite the tensors of the state that it is given, never the gradient. `carry(state, turn)`
    is the state after a change of coordinates that takes a gradient R to turn @ R. `watch(x, dy)`
    is what is to be seen of a layer's inputs (tokens, in) and the gradients of its outputs
    (tokens, out), for step 1 and each of the group's `every` steps; backward passes are averaged.

    `company(state, now)` tells which parameters may go through this step's update together, as one
    stack with a leading dimension more: those of equal shapes, of equal numbers in their states and
    of equal answers. None goes alone.
    """

    start: Callable[[Tensor], State]
    update: Callable[[Tensor, State, Now], tuple[Tensor, State]]
    carry: Callable[[State, Tensor], State] = _as_it_was
    company: Callable[[State, Now], Hashable] = _alone
    watch: Callable[[Tensor, Tensor], State] | None = None


def chain(*transforms: Transform) -> Transform:
    """The transforms in turn, each over what the one before it gives."""

    def start(like: Tensor) -> State:
        state: State = {}
        for transform in transforms:
            own = transform.start(like)
            if clash := state.keys() & own.keys():
                raise ValueError(f"two transforms of a chain keep state called {sorted(clash)}")
            state |= own
        return state

    def update(x: Tensor, state: State, now: Now) -> tuple[Tensor, State]:
        for transform in transforms:
            x, state = transform.update(x, state, now)
        return x, state

    def carry(state: State, turn: Tensor) -> State:
        for transform in transforms:
            state = transform.carry(state, turn)
        return state

    watches = [t.watch for t in transforms if t.watch is not None]

    def watch(x: Tensor, dy: Tensor) -> State:
        return {name: value for one in watches for name, value in one(x, dy).items()}

    company = in_common(*(t.company for t in transforms))
    return Transform(start, update, carry, company, watch if watches else None)


def in_common(*companies: Callable[[State, Now], Hashable]) -> Callable[[State, Now], Hashable]:
    """The company that suits all of them."""

    def company(state: State, now: Now) -> Hashable:
        answers = tuple(each(state, now) for each in companies)
        return None if None in answers else answers

    return company
