"""Models that hold weights as refinements, at any smaller size: the least important terms go."""

from __future__ import annotations

from collections.abc import Collection
from itertools import accumulate

from torch import nn

from ..allocation import ALLOCATORS, Candidate
from ..operators import Operator, Refined
from ..operators.counting import count_each
from ..rewrites import Menu, Unit
from .budget import parse_size


def cut(model: nn.Module, size: str, shared: Collection[str] = ()) -> dict[str, int]:
    """Drop terms of every `Refined` in the model, in place, until it stores at most `size`.

    size: bytes of the whole model, "40MB". The terms that stay are those that a greedy allocation
    of these bytes would have made. `shared`: names of tensors that others are yet to stand for.

    Returns how many terms stay, by the operator's path. Raises ValueError for a model without
    refinements, and for a size that cannot be read or met, naming the smallest.
    """
    found = {path: op for path, op in model.named_modules() if isinstance(op, Refined)}
    if not found:
        raise ValueError(
            "the model holds no weight in terms that can be dropped: make it so by "
            "corank.compress(model, 'bitstack', keep=1.0, ...); channels that 'uniql' sorted go by "
            "corank.cut(model, keep=...)"
        )
    wanted, in_bytes = parse_size(size)
    if not in_bytes:
        raise ValueError(f"size={size!r} counts parameters: give bytes, such as '40MB'")
    candidates = [Candidate(Unit([], [op]), _menu(op)) for op in found.values()]
    others = _stored(model, shared) - sum(candidate.bytes for candidate in candidates)
    least = others + sum(candidate.menu.costs[0] for candidate in candidates)
    if wanted < least:
        raise ValueError(f"size={size!r} is below the smallest reachable, {least:,} bytes")
    picks = ALLOCATORS["greedy"](candidates, wanted - others)
    kept = {path: pick + 1 for path, pick in zip(found, picks, strict=True)}
    for path, count in kept.items():
        found[path].shorten(count)
    return kept


def _menu(op: Refined) -> Menu:
    terms: list[Operator] = list(op.operators)
    costs = list(accumulate(bytes_ for _, bytes_ in count_each(terms)))
    return Menu(range(1, len(terms) + 1), costs, lambda: op.errors)


def _stored(model: nn.Module, shared: Collection[str]) -> int:
    named = (*model.named_parameters(remove_duplicate=False),
             *model.named_buffers(remove_duplicate=False))  # fmt: skip
    once = {id(tensor): tensor for name, tensor in named if name not in shared}
    return sum(tensor.numel() * tensor.element_size() for tensor in once.values())
