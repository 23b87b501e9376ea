"""What a model remembers of an adapter, as JSON values and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..adapters.active import active, train
from ..adapters.record import Adapter, adapters
from ..errors import FormatError
from ..models import Site
from ..operators import Operator
from ..registry import Adaptation, find_method
from ..rewrites import Rewrite
from .held_record import Place, describe_held, recorded_sites, require_record

_OWN: dict[str, type | tuple[type, ...]] = {
    "targets": (str, list, dict), "also": list, "trains": dict,
}  # fmt: skip


def describe_adapter(held: Adapter) -> dict[str, Any]:
    """The record of an adapter, its sites by name; without parameters that are no JSON values."""
    return describe_held(held) | {
        "targets": held.targets if isinstance(held.targets, (str, Mapping)) else [*held.targets],
        "also": list(held.also),
        "trains": {name: list(leaves) for name, leaves in held.trains.items()},
    }


def restored_adapter(model: nn.Module, record: Any, place: Place = lambda path: path) -> Adapter:
    """The record of an adapter for `model`, whose sites are at `place` of the recorded names.

    Raises FormatError for a record that is none, or of sites that the model has not.
    """
    _require_record(record)
    named = recorded_sites(model, record, place)
    sites = {site.name: site for site in named.values()}
    trains = {
        site.name: tuple(str(leaf) for leaf in record["trains"].get(name, ()))
        for name, site in named.items()
    }
    return Adapter(
        record["name"], record["method"], record["parameters"], record["targets"],
        record["seed"], sites, recipe_of(record["method"], record["parameters"]),
        also=tuple(str(name) for name in record["also"]), trains=trains,
    )  # fmt: skip


def restore_records(model: nn.Module, records: Any, place: Place = lambda path: path) -> None:
    """Let a loaded model remember the adapters it was saved with, and train what they train.

    One with a site that this model (with another head, or none) has not is forgotten.
    """
    for record in records:
        _require_record(record)
        if all(place(name) is not None for name in record["overrides"]):
            held = restored_adapter(model, record, place)
            adapters(model)[held.name] = held
    if adapters(model):
        model.requires_grad_(False)
        acting = active(model)
        for name in adapters(model):
            train(model, name, name in acting)


def recipe_of(method: str, parameters: Mapping[str, Any]) -> Adaptation:
    """The registered method with these parameters; one that does nothing of its own while training
    where there is none such."""
    try:
        recipe: Adaptation = find_method(method, "adapt").recipe(parameters)
    except (TypeError, ValueError):
        return Adaptation(Rewrite(_unknown), lambda sites: 0)
    return recipe


def _unknown(op: Operator, site: Site) -> Operator:
    raise ValueError("the method that made this adapter is not registered")


def _require_record(record: Any) -> None:
    require_record(record, _OWN)
    if not all(isinstance(leaves, list) for leaves in record["trains"].values()):
        raise FormatError("an adapter's record is damaged")
