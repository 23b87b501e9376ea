"""Keeping transformers' list of tied parameters true while modules are replaced."""

from __future__ import annotations

from collections.abc import Sequence

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
            part.all_tied_weights_keys = renamed  # type: ignore[assignment]
            part._tied_weights_keys = dict(renamed)  # type: ignore[assignment]


def _renamed(
    ties: dict[str, str], places: set[str], old: Sequence[str], new: Sequence[str]
) -> dict[str, str]:
    renamed: dict[str, str] = {}
    for target, source in ties.items():
        place, name = _split(target, places, old)
        other, _ = _split(source, places, old)
        if place is None or other is None:
            renamed[target] = source
        elif name == old[0]:
            renamed |= {f"{place}.{leaf}": f"{other}.{leaf}" for leaf in new}
    return renamed


def _split(key: str, places: set[str], names: Sequence[str]) -> tuple[str | None, str | None]:
    for name in names:
        place = key.removesuffix("." + name)
        if place != key and place in places:
            return place, name
    return None, None
