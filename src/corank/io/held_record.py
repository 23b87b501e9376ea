"""What the records of adapters and of factorised weights have in common, as JSON values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..adapters.holding import Held
from ..adapters.record import is_json
from ..errors import FormatError
from ..models import Site, survey

#: Where a recorded site is in a model; None if it is not there.
Place = Callable[[str], str | None]
_TYPES = {"name": str, "method": str, "parameters": dict, "seed": int, "overrides": dict}


def describe_held(held: Held) -> dict[str, Any]:
    """The record, its sites by name; without parameters that are no JSON values."""
    return {
        "name": held.name,
        "method": held.method,
        "parameters": {key: v for key, v in held.parameters.items() if is_json(v)},
        "seed": held.seed,
        "overrides": {
            name: {key: v for key, v in site.overrides.items() if is_json(v)}
            for name, site in held.sites.items()
        },
    }


def recorded_sites(model: nn.Module, record: Mapping[str, Any], place: Place) -> dict[str, Site]:
    """The sites of a record in `model`, by their names in the record.

    Raises FormatError for sites that the model has not.
    """
    every = {site.name: site for site in survey(model, record["seed"], foreign=True)[0]}
    named = {place(name): name for name in record["overrides"]}
    for here, name in named.items():
        if here not in every:
            raise FormatError(f"{record['name']!r}: the model has no weight {name}")
    sites = {named[here]: site for here, site in every.items() if here in named}
    for name, site in sites.items():
        site.overrides = record["overrides"][name]
    return sites


def require_record(record: Any, more: Mapping[str, Any]) -> None:
    """Refuse what lacks an entry, or has one of another type. `more`: entries beside the common."""
    types = _TYPES | dict(more)
    if not isinstance(record, dict) or set(record) != set(types):
        raise FormatError("a record of what trains lacks an entry, or has one too many")
    for key, kind in types.items():
        if not isinstance(record[key], kind):
            raise FormatError(f"the record of what trains has {key} of another type than written")
    if not all(isinstance(value, dict) for value in record["overrides"].values()):
        raise FormatError("the record of what trains is damaged")
