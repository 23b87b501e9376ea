"""Which rows the board of training has: every optimiser, every factorisation, and adapters."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

import corank
from benchmarks.pretraining.task import Size
from corank.training import optimizers

GRID = (1e-3, 3e-3, 1e-2, 3e-2)
SEEDS = (0, 1)
#: Adapters that add to weights that stay frozen at their random start, restarted or not.
ADAPTERS = ("lora", "relora", "periodic_lora")
EVERY = 20  #: steps between refreshes, where a method has them


@dataclass(frozen=True)
class Row:
    """kind: "optimizer", "factorize" or "adapt"; the others' optimiser is AdamW."""

    kind: str
    method: str
    parameters: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> str:
        return f"{self.method}, {self.kind}"


def list_rows(size: Size) -> Iterator[Row]:
    """Every row of a size; a method's parameters are its defaults but for rank and refreshes."""
    for key, kind in optimizers().items():
        yield Row("optimizer", key, _chosen(inspect.signature(kind).parameters, size))
    for area, name in (("train", "factorize"), ("adapt", "adapt")):
        for method in corank.methods(area):
            usual = method.parameters
            if area == "train" or method.key in ADAPTERS:
                own = {k: Parameter(k, Parameter.KEYWORD_ONLY, default=v) for k, v in usual.items()}
                yield Row(name, method.key, _chosen(own, size))


def _chosen(parameters: Any, size: Size) -> tuple[tuple[str, Any], ...]:
    wanted = {"rank": size.rank, "every": EVERY}
    found = {k: v for k, v in wanted.items() if k in parameters}
    if isinstance(usual := getattr(parameters.get("every"), "default", None), int):
        found["every"] = min(EVERY, usual)
    return tuple(found.items())
