"""Keeping transformers' list of tied parameters true while modules are replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn


def rename_ties(
    model: nn.Module, places: Sequence[str], old: Sequence[str], new: Sequence[str]
) -> None:
    """Let every tie between `places` be over the tensors `new` instead of `old`.

    places: module paths; old, new: state names within them, such as "weight" or "operator.b".
    transformers reads the list when it ties, saves and loads weights, so a stale name breaks it.
    """
    for prefix, part in model.named_modules():
        ties: dict[str, str] | None = getattr(part, "all_tied_weights_keys", None)
        if not ties:
            continue
        start = f"{prefix}." if prefix else ""
        inside = {place.removeprefix(start) for place in places if place.startswith(start)}
        renamed = _renamed(ties, inside, old, new)
        if renamed != ties:
            part.all_tied_weights_keys = renamed
            part._tied_weights_keys = dict(renamed)


def ties_of(model: nn.Module) -> Callable[[], None]:
    """Remember transformers' lists of ties; calling the result brings them back."""
    parts: list[Any] = [m for m in model.modules() if getattr(m, "all_tied_weights_keys", None)]
    kept = [
        (part, dict(part.all_tied_weights_keys), vars(part).get("_tied_weights_keys"))
        for part in parts
    ]

    def restore() -> None:
        for part, ties, own in kept:
            part.all_tied_weights_keys = ties
            vars(part).pop("_tied_weights_keys", None)
            if own is not None:
                part._tied_weights_keys = own

    return restore


def _renamed(
    ties: dict[str, str], places: set[str], old: Sequence[str], new: Sequence[str]
) -> dict[str, str]:
    renamed: dict[str, str] = {}
    for target, source in ties.items():
        place, other = _place(target, places, old), _place(source, places, old)
        if place is None or other is None:
            renamed[target] = source
        else:
            renamed |= {f"{place}.{leaf}": f"{other}.{leaf}" for leaf in new}
    return renamed


def _place(key: str, places: set[str], names: Sequence[str]) -> str | None:
    found = (key.removesuffix("." + name) for name in names if key.endswith("." + name))
    return next((place for place in found if place in places), None)
