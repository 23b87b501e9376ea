"""Transforms of gradients as `torch.optim` optimisers."""

from __future__ import annotations

import abc
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .advancing import advance
from .checks import require_sound
from .finite import all_finite
from .groups import groups
from .plain import advance_plainly
from .sharded import (
    advance_sharded,
    first_state,
    is_mine,
    owners,
    require_one_shard,
    share_state,
)
from .state import ON_CPU, fresh_state, is_projected, outline
from .tracing import unrolled, untraced
from .transform import Transform
from .watching import Sight, look_at

#: What every group has, whatever the method.
OPTIONS = {"project": True, "stack": False, "state_dtype": "float32"}


@lru_cache
def _options_of(recipe: Callable[..., Transform]) -> tuple[str, ...]:
    return tuple(inspect.signature(recipe).parameters)


@lru_cache
def _made(recipe: Callable[..., Transform], options: tuple[tuple[str, Any], ...]) -> Transform:
    return recipe(**dict(options))


class LowRankOptimizer(Optimizer, abc.ABC):
    """Weights of two or more dimensions go through `transform`, all others through Adam.

    params: parameters, groups of them, or a model: its linear layers are then projected, and not
        its embeddings, norms and heads (see `corank.optim.groups`). Any option may differ between
        groups; `project=False` makes a group plain Adam; `stack=True` takes its parameters of
        three and more dimensions as stacks of matrices (fused experts), not as filters to flatten.
    weight_decay: decoupled, as AdamW's.
    state_dtype: "float32" (float64 for float64 parameters), "bfloat16", or "int8": tensors of 4096
        numbers and more, but for a stored basis, in eight bits by blocks of 256.

    `torch.compile(optimizer.step)` compiles the transforms; the walk over parameters and the search
    for a basis stay as they are. Shapes, stacks and refreshes each take a graph of their own, so
    that models of many shapes want a larger `torch._dynamo.config.recompile_limit`.

    A parameter without gradient is left alone. A step with a gradient that is not finite changes
    nothing and warns. Sparse gradients are refused.
    """

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        super().__init__(
            groups(params) if isinstance(params, nn.Module) else params, OPTIONS | defaults
        )
        self._watch(params)

    key: str  #: of the registered method
    sights: Mapping[Tensor, Sight] = MappingProxyType({})  #: of the layers that it looks at

    @staticmethod
    @abc.abstractmethod
    def transform(**options: Any) -> Transform:
        """What a projected matrix's gradient goes through."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            require_sound(group)
            transform = self._transform(group)
            for p in group["params"]:
                require_one_shard(p, group, transform.watch is not None)
                fresh_state(outline(p), group, transform)
        except ValueError:
            self.param_groups.pop()
            raise

    @untraced
    def _transform(self, group: dict[str, Any]) -> Transform:
        names = _options_of(type(self).transform)
        return _made(type(self).transform, tuple((n, group[n]) for n in names if n in group))

    def _watch(self, model: Any) -> None:
        """Look at the layers of a model, for the transforms that want to see them."""
        for group in self.param_groups:
            watch = self._transform(group).watch
            if watch is not None and group["project"]:
                if not isinstance(model, nn.Module):
                    raise ValueError(
                        f"{type(self).__name__} looks at the inputs of layers and the gradients "
                        "of their outputs: give it the model, not its parameters"
                    )
                self.sights = {**self.sights, **look_at(model, group["params"], watch, self)}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step over every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        params = [p for group in self.param_groups for p in group["params"]]
        if all_finite([p.grad for p in params]):
            self.advance(params)
        else:
            warnings.warn("a gradient is not finite: this step was skipped", stacklevel=2)
            for sight in self.sights.values():
                sight.forget()
        return loss

    @unrolled
    @torch.no_grad()
    def advance(self, params: Iterable[Tensor]) -> None:
        """Step those of the parameters that have gradients, which are taken to be finite."""
        chosen = set(params)
        projected = self._projected()
        places, owner = {p: i for i, p in enumerate(projected)}, owners(projected)
        for group in self.param_groups:
            transform = self._transform(group)
            moved = [p for p in group["params"] if p in chosen and p.grad is not None]
            moved = [p for p in moved if p.numel()]
            for p in moved:
                if not self.state[p]:
                    self.state[p].update(first_state(p, group, transform, owner))
            whole = [p for p in moved if p in places and p not in owner]
            advance(whole, group, transform, self.state, places, self.sights)
            parts = [p for p in moved if p in owner]
            advance_sharded(parts, group, transform, self.state, places, owner)
            advance_plainly([p for p in moved if p not in places], group, self.state)

    def _projected(self) -> list[Tensor]:
        return [p for g in self.param_groups for p in g["params"] if is_projected(p, g)]

    def state_dict(self) -> dict[str, Any]:
        """As torch's; of sharded matrices, owners share theirs, so that every process must call."""
        found = super().state_dict()
        owner = owners(self._projected())
        for group, numbered in zip(self.param_groups, found["param_groups"], strict=True):
            transform = self._transform(group)
            for p, number in zip(group["params"], numbered["params"], strict=True):
                if p in owner and number in found["state"]:
                    like = fresh_state(outline(p), group, transform)
                    found["state"][number] = share_state(self.state[p], like, p, owner[p])
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but with every tensor in the type that it was saved in."""
        self._require_fitting(state_dict)
        super().load_state_dict(state_dict)
        saved = state_dict["state"]
        numbers = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        owner = owners(self._projected())
        for number, p in zip(numbers, params, strict=True):
            if not is_mine(p, owner):
                if number in saved:
                    self.state[p] = {"step": saved[number]["step"]}
                continue
            for name, value in saved.get(number, {}).items():
                if isinstance(value, Tensor):
                    device = "cpu" if name in ON_CPU else p.device
                    self.state[p][name] = value.detach().to(device, copy=True)

    def _require_fitting(self, state_dict: dict[str, Any]) -> None:
        """Raise ValueError for state of other shapes, before anything is changed."""
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=False):
            transform = self._transform(saved)
            for p, number in zip(group["params"], saved["params"], strict=False):
                held = state_dict["state"].get(number)
                wanted = fresh_state(outline(p), saved, transform) if held else {}
                for name, value in wanted.items():
                    shape = getattr(value, "shape", None)
                    if name not in held or getattr(held[name], "shape", None) != shape:
                        raise ValueError(
                            f"the saved state of parameter {number} lacks {name!r} or has it in "
                            f"another shape than the parameter {tuple(p.shape)} needs: give the "
                            "same parameters and options as when it was saved"
                        )


def state_bytes(optimizer: LowRankOptimizer) -> int:
    """Bytes of the optimiser's state: what it holds, or will once every parameter has stepped.

    Parameters may be on the meta device.
    """
    total = 0
    for group in optimizer.param_groups:
        transform = optimizer._transform(group)
        for p in group["params"]:
            if p.numel():
                state = optimizer.state.get(p)
                held = state or fresh_state(p, group, transform)
                total += sum(t.nbytes for t in held.values() if isinstance(t, Tensor))
    return total
