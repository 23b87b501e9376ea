"""What a model remembers of the weights that were factorised in it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..models import Site
from ..registry import Factorization

_ATTRIBUTE = "corank_factorized"


@dataclass(eq=False)
class Factorized:
    """Weights that one call of `corank.factorize` replaced, and what they do while training."""

    name: str
    method: str
    parameters: Mapping[str, Any]
    seed: int
    sites: dict[str, Site]
    recipe: Factorization


def factorized(model: nn.Module) -> dict[str, Factorized]:
    """The factorised groups of weights in a model, by name, in the order they came."""
    held: dict[str, Factorized] = vars(model).setdefault(_ATTRIBUTE, {})
    return held


def free_name(model: nn.Module, method: str) -> str:
    """A name that no group has: "factorized:METHOD", or that with a number."""
    name, number = f"factorized:{method}", 1
    while name in factorized(model):
        number += 1
        name = f"factorized:{method}:{number}"
    return name


def forget(model: nn.Module, names: Collection[str]) -> None:
    """Remember no longer that these sites were factorised: something else stands there now."""
    for group, held in list(factorized(model).items()):
        held.sites = {name: site for name, site in held.sites.items() if name not in names}
        if not held.sites:
            del factorized(model)[group]
