"""One measurement of the board of special models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from corank.registry import METHODS
from corank.verbs.steps import read_steps


@dataclass(frozen=True)
class Composition:
    """A method with its parameters, or steps, which have theirs with them."""

    method: str | tuple[Any, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """As a user would write it."""
        if not isinstance(self.method, str):
            return " + ".join(step.label for step in read_steps(self.method))
        said = ", ".join(f"{name}={value!r}" for name, value in self.parameters.items())
        return f"{self.method}({said})" if said else self.method

    @property
    def needs(self) -> frozenset[str]:
        """The statistics that it calibrates."""
        if isinstance(self.method, str):
            return frozenset(METHODS[self.method].recipe(dict(self.parameters)).needs)
        return frozenset(need for step in read_steps(self.method) for need in step.recipe.needs)


@dataclass(frozen=True)
class Row:
    """A composition at a share of the targeted weights' bytes."""

    composition: Composition
    share: float
    seed: int = 0

    @property
    def label(self) -> str:
        """What it is shown as."""
        return self.composition.label

    @property
    def key(self) -> str:
        """What tells this row from all others of the same model."""
        return f"{self.label}, {100 * self.share:g}%, seed {self.seed}"


def steps(*found: Any) -> Composition:
    """The composition of these steps."""
    return Composition(found)
