"""The model's own parameters that train with an adapter: whose values are in place."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from .record import Adapter


def keep(model: nn.Module, held: Adapter) -> None:
    """Remember what the parameters of `held.also` are before they train."""
    held.kept = {name: model.get_parameter(name).detach().clone() for name in held.also}
    held.in_place = True


def switch(model: nn.Module, held: Adapter, on: bool) -> None:
    """Put the adapter's values of the model's own parameters in place, or the original ones.

    The parameters stay the same objects, so an optimiser over them goes on.
    """
    if held.in_place == on:
        return
    for name, other in held.kept.items():
        parameter = model.get_parameter(name)
        here = parameter.data
        parameter.data = other.to(here)
        held.kept[name] = here
    held.in_place = on


def require_apart(several: Iterable[Adapter]) -> None:
    """Refuse adapters that train the same of the model's own parameters, to act at once."""
    owner: dict[str, str] = {}
    for held in several:
        for name in held.also:
            if name in owner:
                raise ValueError(
                    f"adapters {owner[name]!r} and {held.name!r} both hold values of {name}, "
                    "which cannot act at once: activate one of them"
                )
            owner[name] = held.name
