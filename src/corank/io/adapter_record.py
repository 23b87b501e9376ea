"""What a model remembers of an adapter, as JSON values and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..adapters.active import active, train
from ..adapters.record import Adapter, adapters, is_json
from ..errors import FormatError
from ..models import Site, survey
from ..operators import Operator
from ..registry import Adaptation, find_method
from ..rewrites import Rewrite

_TYPES: dict[str, type | tuple[type, ...]] = {
    "name": str, "method": str, "parameters": dict, "targets": (str, list, dict), "seed": int,
    "overrides": dict, "also": list, "trains": dict,
}  # fmt: skip


def describe_adapter(held: Adapter) -> dict[str, Any]:
    """The record of an adapter, its sites by name; without parameters that are no JSON values."""
    return {
        "name": held.name,
        "method": held.method,
        "parameters": {key: v for key, v in held.parameters.items() if is_json(v)},
        "targets": held.targets if isinstance(held.targets, (str, Mapping)) else [*held.targets],
        "seed": held.seed,
        "overrides": {
            name: {key: v for key, v in site.overrides.items() if is_json(v)}
            for name, site in held.sites.items()
        },
        "also": list(held.also),
        "trains": {name: list(leaves) for name, leaves in held.trains.items()},
    }


def restored_adapter(
    model: nn.Module, record: Any, place: Callable[[str], str | None] = lambda path: path
) -> Adapter:
    """The record of an adapter for `model`, whose sites are at `place` of the recorded names.

    Raises FormatError for a record that is none, or of sites that the model has not.
    """
    _require_record(record)
    every = survey(model, record["seed"], foreign=True)[0]
    named = {place(name): name for name in record["overrides"]}
    for here, name in named.items():
        if here not in {site.name for site in every}:
            raise FormatError(f"adapter {record['name']!r}: the model has no weight {name}")
    sites = {site.name: site for site in every if site.name in named}
    trains: dict[str, tuple[str, ...]] = {}
    for here, site in sites.items():
        site.overrides = record["overrides"][named[here]]
        trains[here] = tuple(str(leaf) for leaf in record["trains"].get(named[here], ()))
    return Adapter(
        record["name"], record["method"], record["parameters"], record["targets"],
        record["seed"], sites, recipe_of(record["method"], record["parameters"]),
        also=tuple(str(name) for name in record["also"]), trains=trains,
    )  # fmt: skip


def restore_records(
    model: nn.Module, records: Any, place: Callable[[str], str | None] = lambda path: path
) -> None:
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
    if not isinstance(record, dict) or set(record) != set(_TYPES):
        raise FormatError("an adapter's record lacks an entry, or has one too many")
    for key, kind in _TYPES.items():
        if not isinstance(record[key], kind):
            raise FormatError(f"an adapter's record has a {type(record[key]).__name__} as {key}")
    nested = [*record["overrides"].values(), *record["trains"].values()]
    if not all(isinstance(value, (dict, list)) for value in nested):
        raise FormatError("an adapter's record is damaged")
