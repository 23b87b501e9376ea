"""Which rows the board at equal bytes has, most telling first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from corank.verbs.candidates import SLOW, candidates
from corank.verbs.steps import read_steps

#: Shares of the targeted weights' bytes in bfloat16; the first are measured first.
SHARES = (0.25, 0.4, 0.12, 0.6, 0.8)
AUTO = "auto"
#: What auto tries here: what leads the board, so that a search takes minutes on one core.
AMONG: tuple[Any, ...] = (
    "gptq", "gpfq", "qera", "loftq", "awq", "kfac_svd", "modegpt", "corank",
    *((key, {"gptq": {"bits": b}}) for key in ("svd_llm", "kfac_svd", "modegpt") for b in (4, 8)),
)  # fmt: skip
#: Plain codes, which everything has to be better than at a quarter of the bytes and below.
PLAIN = ("round_to_nearest", "gptq")
#: Bits under repairs of fixed codes, which a claim compares.
LEAST_BITS = 2
#: Structures whose factors are also stored in codes.
IN_CODES = ("svd_llm", "kfac_svd", "modegpt", "compot")


@dataclass(frozen=True)
class Row:
    """One measurement: steps of `corank.compress`, or "auto", at a share of the bytes."""

    steps: tuple[Any, ...]
    share: float
    seed: int = 0

    @property
    def label(self) -> str:
        """The composition as a user would write it."""
        if self.steps == (AUTO,):
            return AUTO
        return " + ".join(step.label for step in read_steps(self.steps))

    @property
    def key(self) -> str:
        """What tells this row from all others of the same model."""
        return f"{self.label}, {self.share:.0%}, seed {self.seed}"


def list_rows(shares: Sequence[float] = SHARES) -> Iterator[Row]:
    """Every row of seed 0: plain codes, all single methods, some structures in codes, auto."""
    single = [tuple(steps) for steps in [*candidates(None), *candidates(sorted(SLOW))]]
    first = [s for s in single if read_steps(s)[0].method.key in PLAIN]
    known = {read_steps(s)[0].method.key for s in single}
    coded = [(key, {"gptq": {"bits": b}}) for key in IN_CODES if key in known for b in (8, 4)]
    repaired: list[tuple[Any, ...]] = [
        ({"eora": {"bits": LEAST_BITS}},), ({"lqer": {"bits": LEAST_BITS, "scaled": False}},),
    ]  # fmt: skip
    for share in shares:
        yield from (Row(steps, share) for steps in [*first, *coded])
        yield from (Row(steps, share) for steps in [*single, *repaired] if steps not in first)
    for share in shares:
        yield Row((AUTO,), share)
