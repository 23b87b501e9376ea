"""A weight with named adapters, combined in function space."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast, final

import torch
from torch import Tensor, nn

from .base import Base
from .dense import Dense
from .low_rank import LowRank
from .operator import Operator
from .precision import autocasts
from .scaled import Scaled
from .selection import Selection
from .skeleton import storable
from .sum import Sum


@storable
@final
class Adapted(Operator):
    """W + sum over adapters of weight_i (W_i - W), for a W that is never changed.

    `operators` are the W_i, each over a `Base` that stands for `base`; `names` and `weights` go
    with them, a weight of 0 meaning inactive. `merged` is the sum as one matrix while it is
    merged, and stored nowhere: taking it away is unmerging.
    """

    operators: Sequence[Operator]
    merged: Operator | None
    #: Which adapter each row of a batch goes through, or None where all go one way.
    selection: Selection | None = None

    def __init__(
        self,
        *operators: Operator,
        base: Operator,
        names: Sequence[str] = (),
        weights: Sequence[float] = (),
    ) -> None:
        super().__init__()
        if not len(operators) == len(names) == len(weights) == len(set(names)):
            raise ValueError(
                f"Adapted: {len(operators)} operators, names {list(names)}, weights {list(weights)}"
                ": one distinct name and one weight for each operator"
            )
        self.shape = base.shape
        self.base = base
        self.operators = cast("Sequence[Operator]", nn.ModuleList(operators))
        self.names, self.weights = tuple(names), tuple(weights)
        self.merged = None
        self.disabled = False
        for op in operators:
            self._bind(op)
        self.refresh()

    def adapter(self, name: str) -> Operator:
        """W_i of that name. Raises KeyError where there is none."""
        if name not in self.names:
            raise KeyError(name)
        return self.operators[self.names.index(name)]

    def add(self, name: str, op: Operator, weight: float = 1.0) -> None:
        """Add an adapter, or put another in the place of the one of that name."""
        self._bind(op)
        held = cast("nn.ModuleList", self.operators)
        if name in self.names:
            held[self.names.index(name)] = op
        else:
            held.append(op)
            self.names, self.weights = (*self.names, name), (*self.weights, 0.0)
        self.activate(dict(zip(self.names, self.weights, strict=True)) | {name: weight})

    def remove(self, name: str) -> None:
        """Take an adapter away; the weight is what it was before it."""
        index = self.names.index(name)
        del cast("nn.ModuleList", self.operators)[index]
        self.names = (*self.names[:index], *self.names[index + 1 :])
        self.weights = (*self.weights[:index], *self.weights[index + 1 :])
        self.merged = None
        self.refresh()

    def activate(self, weights: Mapping[str, float]) -> None:
        """Let these adapters act with these weights, and no others."""
        self.weights = tuple(float(weights.get(name, 0.0)) for name in self.names)
        self.merged = None
        self.refresh()

    def disable(self, disabled: bool) -> None:
        """Act as the bare weight, whatever is active, or go back."""
        self.disabled = disabled
        self.refresh()

    def merge(self, merged: Operator | None) -> None:
        """Act as one matrix in place of the active adapters; None goes back to them."""
        self.merged = merged
        self.refresh()

    @property
    def view(self) -> Operator:
        """The active sum as one operator, over the same leaves."""
        return self._view[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.through(_apply, x)

    def through(self, apply: Callable[[Operator, Tensor], Tensor], x: Tensor) -> Tensor:
        """`apply(view, x)`, in the adapters' dtype and back in that of x, or row by row."""
        if self.selection is not None and not self.disabled:
            return self._by_row(apply, x, self.selection)
        return _widened(apply, self.view, x)

    def dense(self) -> Tensor:
        view = self.view
        wide = view.dense()
        return wide.to(self.base.dtype)

    def flops(self, tokens: int) -> int:
        return self.view.flops(tokens)

    @property
    def plain(self) -> tuple[Dense, LowRank, float] | None:
        """(W, b a, s) where the active sum is W + s b a, nothing else; the case to be quick in."""
        return self._plain

    def refresh(self) -> None:
        """Compose `view` again, after adapters came, went or were replaced."""
        if self.merged is not None and not self.disabled:
            self._view: tuple[Operator] = (self.merged,)
        else:
            weights = () if self.disabled else self.weights
            self._view = (self._combine(dict(zip(self.names, weights, strict=False))),)
        self._plain = _as_plain(self.base, self._view[0])

    def _combine(self, weights: Mapping[str, float]) -> Operator:
        chosen = [name for name, weight in weights.items() if weight != 0]
        if len(chosen) == 1 and weights[chosen[0]] == 1:
            return self.adapter(chosen[0])
        whole, kept, terms = Base(self.shape).bind(self.base), 1.0, list[Operator]()
        for name, weight in weights.items():
            if weight == 0:
                continue
            op = self.adapter(name)
            added = additions(op)
            if added is None:
                kept -= weight
                terms.append(_times(weight, op))
            else:
                terms += [_times(weight, term) for term in added]
        if kept != 0:
            terms.insert(0, _times(kept, whole))
        return terms[0] if len(terms) == 1 else Sum(*terms)

    def _by_row(
        self, apply: Callable[[Operator, Tensor], Tensor], x: Tensor, selection: Selection
    ) -> Tensor:
        order: list[Tensor] = []
        parts: list[Tensor] = []
        for name, share, where in selection.parts(x):
            own = name is not None and name in self.names
            view = self._combine({name: 1.0} if own and name is not None else {})
            parts.append(_widened(apply, view, share))
            order.append(where)
        return torch.cat(parts)[torch.cat(order).argsort()]

    def _bind(self, op: Operator) -> None:
        if op.shape != self.shape:
            raise ValueError(f"an adapter of {op.shape} does not fit a weight of {self.shape}")
        for module in op.modules():
            if isinstance(module, Base) and module._referent is not self.base:
                module.bind(self.base)


def additions(op: Operator) -> Sequence[Operator] | None:
    """The terms that `op` adds to the base, or None where it does more than add."""
    if isinstance(op, Base):
        return []
    if isinstance(op, Sum) and isinstance(op.operators[0], Base):
        return list(op.operators)[1:]
    return None


def _as_plain(base: Operator, view: Operator) -> tuple[Dense, LowRank, float] | None:
    added = additions(view)
    if added is None or len(added) != 1 or not isinstance(base, Dense):
        return None
    scaled = added[0]
    term, scale = (scaled.operator, scaled.scale) if isinstance(scaled, Scaled) else (scaled, 1.0)
    if not isinstance(term, LowRank) or term.gate is not None or term.mask is not None:
        return None
    return (base, term, scale) if term.dtype == base.dtype else None


def _apply(op: Operator, x: Tensor) -> Tensor:
    out: Tensor = op(x)
    return out


def _widened(apply: Callable[[Operator, Tensor], Tensor], op: Operator, x: Tensor) -> Tensor:
    if not x.is_floating_point() or autocasts(x.device) or x.dtype == op.dtype:
        return apply(op, x)
    return apply(op, x.to(op.dtype)).to(x.dtype)


def _times(weight: float, op: Operator) -> Operator:
    if weight == 1:
        return op
    if isinstance(op, Scaled):
        return Scaled(op.operator, weight * op.scale)
    return Scaled(op, weight)
