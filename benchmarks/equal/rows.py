"""Which rows the board at equal bytes has, most telling first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from corank.verbs.candidates import BITS, SLOW, candidates
from corank.verbs.steps import read_steps

#: Shares of the targeted weights' bytes in bfloat16; the first are measured first.
SHARES = (0.25, 0.4, 0.12, 0.6, 0.8)
AUTO = "auto"
#: What auto tries here: what leads the board, so that a search takes minutes on one core.
AMONG: tuple[Any, ...] = (
    "gptq", "gpfq", "qera", "loftq", "awq", "signround", "kfac_svd", "modegpt", "corank",
    *((key, {"gptq": {"bits": b}}) for key in ("svd_llm", "kfac_svd", "modegpt") for b in (4, 8)),
)  # fmt: skip
#: Plain codes, which everything has to be better than at a quarter of the bytes and below.
PLAIN = ("round_to_nearest", "gptq")
#: What groups of 64 take beside their codes, in bits for each number.
BESIDE = 24 / 64
#: What has one number of bits for all weights, and what each number then takes: of these, the most
#: that a share has room for. What is left goes into factors, of methods that have them.
ONE_WIDTH: dict[str, dict[int, float]] = {
    "signround": {bits: bits + BESIDE for bits in BITS}, "realm": {2: 1.7, 8: 3.2},
}  # fmt: skip
#: Bits under repairs of fixed codes, which a claim compares.
LEAST_BITS = 2
#: Structures whose factors are also stored in codes, of so many bits.
IN_CODES = ("svd_llm", "kfac_svd", "modegpt", "compot", "cospadi", "rocket", "monarch", "blast")
CODES = (8, 4)
#: Batches of the calibration text that healing reads, one a step.
HEALED = 120
#: A size for healed rows only: less than one bit for each weight.
BELOW = 0.05
#: Where what is chosen below is healed, and where every method is.
HEALED_AT, ALL_HEALED = (0.25, 0.12, BELOW), 0.25
#: What trains by itself and is no step of a composition, with its parameters and where it is tried:
#: what has one size at that size.
TRAINED: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "littlebit": ({"bits": None}, HEALED_AT),
    "lrq": ({"bits": BITS}, (0.25,)),
    "norm_tweaking": ({"bits": BITS}, (0.25,)),
    "int21": ({"bits": LEAST_BITS}, (0.25,)),
    "onebit": ({}, (0.12,)),
    "dsformer": ({}, HEALED_AT),
    "pela": ({}, HEALED_AT),
    "row_column_sharing": ({}, (0.8,)),
}
#: What is healed, each for as long.
TO_HEAL: tuple[Any, ...] = (
    {"gptq": {"bits": BITS}}, ("kfac_svd", {"gptq": {"bits": 4}}),
    ("modegpt", {"gptq": {"bits": 4}}), "corank", "kfac_svd", "svd_llm", "modegpt", "uniql",
    "compot", "monarch",
)  # fmt: skip
#: What is done with other draws of calibration text, and at which share.
SEEDED: tuple[Any, ...] = (
    {"gptq": {"bits": BITS}}, {"awq": {"bits": BITS}}, {"qera": {"bits": BITS}}, "kfac_svd",
    "modegpt", ("kfac_svd", {"gptq": {"bits": 4}}), ("modegpt", {"gptq": {"bits": 4}}),
)  # fmt: skip
SEEDS, SEEDED_AT = (1, 2), 0.25


@dataclass(frozen=True)
class Row:
    """One measurement: steps of `corank.compress`, or "auto", at a share of the bytes.

    steps: or one of `TRAINED`. healed: steps of healing after it, 0 for none.
    """

    steps: tuple[Any, ...]
    share: float
    seed: int = 0
    healed: int = 0

    @property
    def label(self) -> str:
        """The composition as a user would write it."""
        if self.steps == (AUTO,):
            return AUTO
        if self.steps[0] in tuple(TRAINED):
            own = TRAINED[self.steps[0]][0].items()
            said = ", ".join(f"{name}={value}" for name, value in own if value is not None)
            return f"{self.steps[0]}({said})" if said else str(self.steps[0])
        return " + ".join(step.label for step in read_steps(self.steps))

    @property
    def key(self) -> str:
        """What tells this row from all others of the same model."""
        healed = f", {self.healed} steps" if self.healed else ""
        return f"{self.label}, {self.share:.0%}, seed {self.seed}{healed}"


def list_rows(shares: Sequence[float] = SHARES) -> Iterator[Row]:
    """Every row of seed 0: plain codes, all single methods, structures in codes, auto.

    Where there is room for codes of everything, a structure in such codes is the codes alone.
    """
    single = _singles()
    first = [s for s in single if read_steps(s)[0].method.key in PLAIN]
    known = {read_steps(s)[0].method.key for s in single}
    repaired: list[tuple[Any, ...]] = [
        ({"eora": {"bits": LEAST_BITS}},), ({"lqer": {"bits": LEAST_BITS, "scaled": False}},),
        ({"qera": {"bits": LEAST_BITS}},), ({"lqer": {"bits": LEAST_BITS}},),
    ]  # fmt: skip
    for share in shares:
        small = [bits for bits in CODES if bits + BESIDE > 16 * share]
        coded = [(key, {"gptq": {"bits": b}}) for key in IN_CODES if key in known for b in small]
        yield from (Row(steps, share) for steps in [*first, *coded])
        yield from (Row(steps, share) for steps in [*single, *repaired] if steps not in first)
        yield from _of_one_width(share)
    for share in shares:
        yield Row((AUTO,), share)


def list_healed(shares: Sequence[float] = (*SHARES, BELOW)) -> Iterator[Row]:
    """Rows that are healed, those that train by themselves first."""
    for share in shares:
        yield from (
            Row((key,), share, healed=HEALED) for key in TRAINED if share in TRAINED[key][1]
        )
        if share in HEALED_AT:
            yield from (Row(_steps(entry), share, healed=HEALED) for entry in TO_HEAL)
        if share == ALL_HEALED:
            there = {Row(_steps(entry), share).label for entry in TO_HEAL}
            rest = [Row(steps, share, healed=HEALED) for steps in _singles()]
            yield from (row for row in rest if row.label not in there)
            yield from _of_one_width(share, HEALED)


def list_seeds() -> Iterator[Row]:
    """Rows of other seeds."""
    yield from (Row(_steps(entry), SEEDED_AT, seed) for entry in SEEDED for seed in SEEDS)


def _steps(entry: Any) -> tuple[Any, ...]:
    return entry if isinstance(entry, tuple) else (entry,)


def _singles() -> list[tuple[Any, ...]]:
    """Single methods that a budget can size."""
    found = [tuple(steps) for steps in [*candidates(None), *candidates(sorted(SLOW))]]
    return [steps for steps in found if read_steps(steps)[0].method.key not in ONE_WIDTH]


def _of_one_width(share: float, healed: int = 0) -> Iterator[Row]:
    for key, taken in ONE_WIDTH.items():
        bits = max((b for b in taken if taken[b] <= 16 * share), default=min(taken))
        yield Row(({key: {"bits": bits}},), share, healed=healed)
