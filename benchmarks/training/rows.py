"""Which rows the board of training has: every optimiser, every factorisation, and adapters."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

import corank
from benchmarks.training.tasks import RANKS
from corank.training import optimizers

FROM_RANDOM = (1e-3, 3e-3, 1e-2, 3e-2)
#: The peak rates that a task's rows choose from.
GRIDS = {
    "small": FROM_RANDOM,
    "medium": FROM_RANDOM,
    "packages": (5e-5, 2e-4, 1e-3, 5e-3),
    "digits": FROM_RANDOM,
}
#: Three where runs are cheap.
SEEDS = {"small": (0, 1, 2), "medium": (0, 1), "packages": (0, 1), "digits": (0, 1, 2)}
#: A product of two factors and nothing else: the published recipe without its guide.
PLAIN = "plain low rank"
#: Adapters that add to weights that stay frozen at their random start, restarted or not.
ADAPTERS = ("lora", "relora", "periodic_lora")
EVERY = 20  #: steps between refreshes, where a method has them
#: Schedules that would not end in 100 steps: 15 looks before the switch, a rank at a time.
SHORTENED = {"cuttlefish": {"every": 3}, "train_rank_increment": {"every": 3}}
#: What a task can show: a trained model keeps its function only under some factorisations.
KINDS = {
    "small": ("optimizer", "factorize", "adapt"),
    "medium": ("optimizer", "factorize", "adapt"),
    "packages": ("optimizer", "preserving"),
    "digits": ("adamw", "factorize"),
}


@dataclass(frozen=True)
class Row:
    """kind: "optimizer", "factorize" or "adapt"; the others' optimiser is AdamW."""

    kind: str
    method: str
    parameters: tuple[tuple[str, Any], ...] = ()
    label: str = ""

    @property
    def name(self) -> str:
        """What it is shown as."""
        return self.label or self.method

    @property
    def key(self) -> str:
        return f"{self.name}, {self.kind}"


def list_rows(task: str) -> Iterator[Row]:
    """Every row of a task; a method's parameters are its defaults but for rank and refreshes."""
    kinds, rank = KINDS[task], RANKS[task]
    for key, kind in optimizers().items():
        if "optimizer" in kinds or key in kinds:
            yield Row("optimizer", key, _chosen(inspect.signature(kind).parameters, rank))
    if "factorize" in kinds:
        yield Row("factorize", "structured_ffn", (("rank", rank), ("guided", 0.0)), PLAIN)
    wanted = set(kinds) & {"factorize", "preserving"}
    for method in (*corank.methods("train"), *corank.methods("optimize")):
        laws = {"factorization", "preserves"} if "preserving" in kinds else {"factorization"}
        if wanted and laws <= method.laws:
            chosen = dict(_chosen(_defaults(method.parameters), rank))
            chosen |= SHORTENED.get(method.key, {})
            yield Row("factorize", method.key, tuple(chosen.items()))
    for key in ADAPTERS if "adapt" in kinds else ():
        usual = corank.registry.find_method(key, "adapt").parameters
        yield Row("adapt", key, _chosen(_defaults(usual), rank))


def _defaults(parameters: dict[str, Any]) -> dict[str, Parameter]:
    return {k: Parameter(k, Parameter.KEYWORD_ONLY, default=v) for k, v in parameters.items()}


def _chosen(parameters: Any, rank: int) -> tuple[tuple[str, Any], ...]:
    usual = {k: v.default for k, v in parameters.items() if k in ("rank", "every", "warmup")}
    found = {}
    if usual.get("rank", 1) != 1:  # a tensor train's rank of 1 is no share of the width
        found["rank"] = rank
    if "every" in usual:
        found["every"] = min(EVERY, usual["every"]) if isinstance(usual["every"], int) else EVERY
        if "warmup" in usual:  # after each restart, as long a share of what follows
            found["warmup"] = usual["warmup"] * found["every"] // usual["every"]
    return tuple(found.items())
