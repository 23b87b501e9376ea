"""Transforms of gradients as `torch.optim` optimisers."""

from __future__ import annotations

import abc
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import unknown
from .groups import groups
from .inner import adam
from .matrices import as_matrix
from .transform import Now, State, Transform
from .watching import Sight, look_at

_COMMON = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "seed": 0}


class LowRankOptimizer(Optimizer, abc.ABC):
    """Weights of two or more dimensions go through `transform`, all others through Adam.

    params: parameters, groups of them, or a model: its linear layers are then projected, and not
        its embeddings, norms and heads (see `corank.optim.groups`). Any option may differ between
        groups; `project=False` makes a group plain Adam; `stack=True` takes its parameters of
        three and more dimensions as stacks of matrices (fused experts), not as filters to flatten.
    weight_decay: decoupled, as AdamW's.
    state_dtype: "float32" (float64 for float64 parameters) or "bfloat16".

    A parameter without gradient is left alone. A step with a gradient that is not finite changes
    nothing and warns. Sparse gradients are refused.
    """

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        own = {"project": True, "stack": False, "state_dtype": "float32"}
        super().__init__(
            groups(params) if isinstance(params, nn.Module) else params, own | defaults
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
            _require_sound(group)
            transform = self._transform(group)
            for p in group["params"]:
                fresh_state(p.to("meta"), group, transform)
        except ValueError:
            self.param_groups.pop()
            raise

    def _transform(self, group: dict[str, Any]) -> Transform:
        names = inspect.signature(self.transform).parameters
        return self.transform(**{name: group[name] for name in names if name in group})

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
        if not _all_finite(p.grad for group in self.param_groups for p in group["params"]):
            warnings.warn("a gradient is not finite: this step was skipped", stacklevel=2)
            for sight in self.sights.values():
                sight.forget()
            return loss
        slots = {p: i for i, p in enumerate(self._projected())}
        for group in self.param_groups:
            transform = self._transform(group)
            for p in group["params"]:
                if p.grad is not None and p.numel():
                    self._advance(p, group, transform, slots.get(p), len(slots))
        return loss

    def _projected(self) -> list[Tensor]:
        return [p for g in self.param_groups for p in g["params"] if is_projected(p, g)]

    def _advance(
        self, p: Tensor, group: dict[str, Any], whole: Transform, slot: int | None, slots: int
    ) -> None:
        dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
        x, weight, chosen = p.grad.to(dtype), p, adam()  # type: ignore[union-attr]
        if slot is not None:
            x, weight, chosen = as_matrix(x, group), as_matrix(p, group), whole
        state = self.state[p]
        if not state:
            state.update(fresh_state(p, group, whole))
        state["step"] += 1
        sight, every = self.sights.get(p), group.get("every", 1)
        seen = {} if sight is None else sight.taken(state["step"], every)
        now = Now(state["step"], slot or 0, slots, group, weight, seen)
        direction, following = chosen.update(x, dict(state), now)
        state.update(following)
        lr = float(group["lr"])
        p.mul_(1 - lr * group["weight_decay"])
        p.add_(direction.reshape(p.shape), alpha=-lr)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but with every tensor in the type that it was saved in."""
        self._require_fitting(state_dict)
        super().load_state_dict(state_dict)
        saved = state_dict["state"]
        numbers = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for number, p in zip(numbers, params, strict=True):
            for name, value in saved.get(number, {}).items():
                if isinstance(value, Tensor):
                    device = "cpu" if name in _ON_CPU else p.device
                    self.state[p][name] = value.detach().to(device, copy=True)

    def _require_fitting(self, state_dict: dict[str, Any]) -> None:
        """Raise ValueError for state of other shapes, before anything is changed."""
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=False):
            transform = self._transform(saved)
            for p, number in zip(group["params"], saved["params"], strict=False):
                held = state_dict["state"].get(number)
                wanted = fresh_state(p.to("meta"), saved, transform) if held else {}
                for name, value in wanted.items():
                    shape = getattr(value, "shape", None)
                    if name not in held or getattr(held[name], "shape", None) != shape:
                        raise ValueError(
                            f"the saved state of parameter {number} lacks {name!r} or has it in "
                            f"another shape than the parameter {tuple(p.shape)} needs: give the "
                            "same parameters and options as when it was saved"
                        )


_ON_CPU = frozenset({"cosines"})


def is_projected(p: Tensor, group: dict[str, Any]) -> bool:
    """Whether a parameter of the group goes through the method or through plain Adam."""
    return bool(group["project"]) and p.ndim >= 2 and p.numel() > 0


def fresh_state(p: Tensor, group: dict[str, Any], transform: Transform) -> State:
    """The state before the first step; over meta tensors it costs nothing to know."""
    like = p.detach()
    if is_projected(p, group):
        like = as_matrix(like, group)
    else:
        transform = adam()
    wide = torch.float64 if p.dtype == torch.float64 else torch.float32
    dtype = wide if group["state_dtype"] == "float32" else getattr(torch, group["state_dtype"])
    return {"step": 0} | transform.start(torch.empty_like(like, dtype=dtype))


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


def optimizer(
    name: str, recipe: Callable[..., Transform], key: str | None = None
) -> type[LowRankOptimizer]:
    """A class of optimisers from a function that makes a transform; its parameters are options.

    key: of the registered method, where it is not the function's name.
    """
    parameters = inspect.signature(recipe).parameters
    own = {k: p.default for k, p in parameters.items()}
    usual = _COMMON | {k: v for k, v in own.items() if k in _COMMON}
    options = usual | own | {"project": True, "stack": False, "state_dtype": "float32"}

    def __init__(self: Any, params: Any, lr: float = 1e-3, **chosen: Any) -> None:
        for key in chosen:
            if key not in options:
                raise unknown(f"option of {name}", key, options)
        LowRankOptimizer.__init__(self, params, options | {"lr": lr} | chosen)

    keyword, either = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    shown = [inspect.Parameter(k, either) for k in ("self", "params")]
    shown.append(inspect.Parameter("lr", either, default=1e-3))
    shown += [inspect.Parameter(k, keyword, default=v) for k, v in options.items()]
    __init__.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    about = f"{inspect.getdoc(recipe)}\n\n{inspect.getdoc(LowRankOptimizer)}"
    body = {
        "__init__": __init__,
        "__doc__": about,
        "__module__": recipe.__module__,
        "key": key or recipe.__name__,
        "transform": staticmethod(recipe),
    }
    return type(name, (LowRankOptimizer,), body)


def _require_sound(group: dict[str, Any]) -> None:
    low, high = group["betas"]
    for name, value, sound in (
        ("lr", group["lr"], group["lr"] >= 0),
        ("betas", group["betas"], 0 <= low < 1 and 0 <= high < 1),
        ("eps", group["eps"], group["eps"] >= 0),
        ("weight_decay", group["weight_decay"], group["weight_decay"] >= 0),
        ("state_dtype", group["state_dtype"], group["state_dtype"] in ("float32", "bfloat16")),
    ):
        if not sound:
            raise ValueError(f"{name} is out of range: {value!r}")
    for p in group["params"]:
        if not p.is_floating_point():
            raise ValueError(f"parameters must be real floating-point tensors, got {p.dtype}")


def _all_finite(grads: Iterable[Tensor | None]) -> bool:
    """Whether all are; raises for sparse ones. One look at the device, not one per gradient."""
    peaks: list[Tensor] = []
    for g in grads:
        if g is None or not g.numel():
            continue
        if g.layout != torch.strided:
            raise RuntimeError(
                "a gradient is sparse: give its parameter to torch.optim.SparseAdam, "
                "or make the embedding with sparse=False"
            )
        low, high = g.aminmax()  # NaN goes through both
        peaks.append((high.float() - high.float()) + (low.float() - low.float()))
    return not peaks or bool(torch.isfinite(torch.stack([p.cpu() for p in peaks])).all())
