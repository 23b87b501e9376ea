"""What a model remembers of its factorised weights, as JSON values and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..adapters.factorized import Factorized, factorized
from ..models import Site
from ..operators import Operator
from ..registry import Factorization, find_factorization
from ..rewrites import Rewrite
from .held_record import Place, recorded_sites, require_record


def restore_factorized(model: nn.Module, records: Any, place: Place = lambda path: path) -> None:
    """Let a loaded model remember what was factorised in it, so that its training can go on.

    A group with a site that this model (with another head, or none) has not is forgotten.
    """
    for record in records:
        require_record(record, {})
        if all(place(name) is not None for name in record["overrides"]):
            sites = {site.name: site for site in recorded_sites(model, record, place).values()}
            factorized(model)[record["name"]] = Factorized(
                record["name"], record["method"], record["parameters"], record["seed"], sites,
                _recipe_of(record["method"], record["parameters"]),
            )  # fmt: skip


def _recipe_of(method: str, parameters: Mapping[str, Any]) -> Factorization:
    """The registered method with these parameters; where there is none such, one that does nothing
    of its own while training."""
    try:
        recipe: Factorization = find_factorization(method).recipe(parameters)
    except (TypeError, ValueError):
        return Factorization(Rewrite(_unknown), lambda sites: 0)
    return recipe


def _unknown(op: Operator, site: Site) -> Operator:
    raise ValueError("the method that made this weight is not registered")
