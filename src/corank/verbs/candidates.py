"""What `method="auto"` tries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..engine.plan import only_sizes, shape_only
from ..models import Site
from ..operators import Operator
from ..registry import METHODS, Recipe
from ..rewrites import Unit
from .steps import read_steps

#: Bits that quantising candidates choose from.
BITS = [2, 3, 4, 6, 8]

#: What takes most of a minute or more for a small block: tried only where it is named.
SLOW = frozenset({"realm", "requant"})


def candidates(among: Sequence[Any] | None) -> list[list[Any]]:
    """One composition for each method that a budget can size and that is quick, or those named.

    A method that can choose among several numbers of bits gets them. Raises ValueError for one that
    is named and cannot be a step.
    """
    if among is not None:
        return [_composition(entry) for entry in among]
    found = sorted(m.key for m in METHODS.values() if m.area in ("compress", "quantize"))
    found = [key for key in found if key not in SLOW]
    made = []
    for key in found:
        try:
            made.append(_composition(key))
        except (ValueError, TypeError):
            continue  # it trains by itself, or wants parameters
    return made


def needs_the_whole(steps: Sequence[Any], sites: Sequence[Site]) -> bool:
    """Whether one block says little of it: a part goes from block to block, or shares between."""
    recipes = [step.recipe for step in read_steps(steps)]
    return any(recipe.cascade is not None or _shares(recipe, sites) for recipe in recipes)


def widest(
    steps: Sequence[Any], sites: Sequence[Site], ops: Sequence[Operator], most: int
) -> Sequence[Any]:
    """The same with as many bits as `most` bytes have room for, where it names one method that has
    one number of bits for all of these weights, and does not say which."""
    key = steps[0]
    if len(steps) > 1 or not isinstance(key, str) or "bits" not in METHODS[key].parameters:
        return steps
    shapes = {site.name: shape_only(site, op) for site, op in zip(sites, ops, strict=True)}
    for bits in sorted(BITS, reverse=True):
        recipe: Recipe = METHODS[key].recipe({"bits": bits})
        units = [Unit(g, [shapes[site.name] for site in g]) for g in recipe.group(list(sites))]
        if (sizes := only_sizes(recipe, units)) is None:
            return steps
        counts = [recipe.family.counts(unit, size) for unit, size in zip(units, sizes, strict=True)]
        if sum(bytes_ for count in counts for _, bytes_ in count) <= most:
            return [{key: {"bits": bits}}]
    return steps


def sensed(steps: Sequence[Any]) -> list[Any] | None:
    """The same, with the last step's budget spread by what each weight's error does to the outputs.

    None where that is not how else it would be spread: by errors relative to the weights' own
    outputs.
    """
    last = read_steps(steps)[-1]
    if last.recipe.allocate != "relative" or "allocate" in last.own:
        return None
    said = {**last.parameters, **last.own, "allocate": "sensitivity"}
    return [*steps[:-1], {last.method.key: said}]


def _shares(recipe: Recipe, sites: Sequence[Site]) -> bool:
    try:
        groups = recipe.group(sites)
    except ValueError:
        return False  # it does not apply, which trying it will say
    return any(len({site.layer for site in group}) > 1 for group in groups)


def _composition(entry: Any) -> list[Any]:
    steps = [entry] if isinstance(entry, (str, Mapping)) else list(entry)
    if steps == [entry] and isinstance(entry, str) and _chooses_bits(entry):
        steps = [{entry: {"bits": BITS}}]
    read_steps(steps)
    return steps


def _chooses_bits(key: str) -> bool:
    if key not in METHODS or "bits" not in METHODS[key].parameters:
        return False
    try:
        METHODS[key].recipe({"bits": BITS})
    except (ValueError, TypeError):
        return False
    return True
