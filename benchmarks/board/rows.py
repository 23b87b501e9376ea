"""Which rows the board has, most important first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import corank
from corank.allocation import ALLOCATORS
from corank.registry import METHODS

KEEPS = (0.4, 0.6, 0.8)
LITERAL = "literal SVD-LLM"
#: Methods with several calibration seeds, and those with every allocator.
MAIN = ("svd", LITERAL, "svd_llm", "kfac_svd", "corank")
EVERY_ALLOCATOR = ("svd_llm", "kfac_svd")
HEALED = ("corank", "svd_llm")
SEEDS = 3


@dataclass(frozen=True)
class Row:
    """One measurement to make. `keep` is None for methods that have a rank of their own."""

    method: str
    keep: float | None
    allocate: str
    seed: int = 0
    healed: bool = False

    @property
    def key(self) -> str:
        """What tells this row from all others of the same model."""
        keep = "own rank" if self.keep is None else f"keep {self.keep}"
        healed = ", healed" if self.healed else ""
        return f"{self.method}, {keep}, {self.allocate}, seed {self.seed}{healed}"


def list_rows() -> Iterator[Row]:
    """Every row: the main methods, all others, healing, all allocators, more seeds."""
    found = [m for m in corank.methods("compress") if not m.laws & {"setting", "encodes"}]
    others = [m.key for m in found if m.key not in MAIN]
    fixed = [key for key in others if METHODS[key].recipe({}).rank is not None]
    spread = [key for key in others if key not in fixed]
    for keep in KEEPS:
        for key in MAIN:
            first, *rest = _own(key, keep)
            yield first
            if key in HEALED:
                yield replace(first, healed=True)
            yield from rest
    for keep in KEEPS:
        for key in spread:
            yield from _own(key, keep)
    for key in fixed:
        yield Row(key, None, "own rank")
    for seed in range(1, SEEDS):
        for keep in KEEPS:
            for key in MAIN:
                if key != "svd":  # no data, no seed
                    yield next(_own(key, keep, seed))
    for keep in KEEPS:
        for key in EVERY_ALLOCATOR:
            done = {row.allocate for row in _own(key, keep)}
            for allocate in ALLOCATORS:
                if allocate not in done:
                    yield Row(key, keep, allocate)


def _own(method: str, keep: float, seed: int = 0) -> Iterator[Row]:
    """A method with its own allocator, then uniform and greedy_floor where these differ."""
    if method == LITERAL:
        yield Row(method, keep, "uniform", seed)
        return
    own = METHODS[method].recipe({}).allocate
    for allocate in dict.fromkeys((own, "uniform", "greedy_floor")):
        yield Row(method, keep, allocate, seed)
