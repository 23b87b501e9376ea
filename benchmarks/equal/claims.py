"""Claims about compression, tried on the rows of the board at equal bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.board.summary import link, number, table
from benchmarks.equal.judging import better, measured
from benchmarks.equal.more import HEALED
from benchmarks.equal.rows import LEAST_BITS
from corank.registry import METHODS
from corank.verbs.candidates import BITS

_BITS = f"(bits={BITS})"


@dataclass(frozen=True)
class Claim:
    """What a paper says of the first row beside the second, both labels, at equal bytes.

    kind: of the rows, as in the names of tables. below: of which sizes it speaks.
    """

    key: str
    says: str
    first: str
    second: str
    kind: str = ""
    below: float = 1.0


CLAIMS = (
    Claim("compot", "orthonormal atoms beat a learned dictionary", "compot", "cospadi"),
    Claim("compot", "beats SVD-LLM", "compot", "svd_llm"),
    Claim("cospadi", "beats SVD-LLM", "cospadi", "svd_llm"),
    Claim("rocket", "beats COMPOT's fixed ratio of atoms", "rocket", "compot"),
    Claim("modegpt", "beats slicing channels as they are", "modegpt", "uniql"),
    Claim("lqer", "beats rounding to nearest", f"lqer{_BITS}", f"round_to_nearest{_BITS}"),
    Claim("eora", "gains over an SVD of what codes lose", f"eora(bits={LEAST_BITS})",
          f"lqer(bits={LEAST_BITS}, scaled=False)"),
    Claim("qera", "beats LQER", f"qera{_BITS}", f"lqer{_BITS}"),
    Claim("qera", "beats LQER on the same codes", f"qera(bits={LEAST_BITS})",
          f"lqer(bits={LEAST_BITS})"),
    Claim("gptq", "beats rounding to nearest", f"gptq{_BITS}", f"round_to_nearest{_BITS}"),
    Claim("awq", "beats rounding to nearest", f"awq{_BITS}", f"round_to_nearest{_BITS}"),
    Claim("blast", "beats low rank", "blast", "svd"),
    Claim("littlebit", "below one bit, better than low rank in codes, of which scales are healed",
          "littlebit", "kfac_svd + gptq(bits=4)", HEALED, below=1 / 16),
    Claim("monarch", "beats low rank", "monarch", "svd"),
)  # fmt: skip


def render_claims(
    tables: Mapping[str, Any], models: Mapping[str, str], more: Sequence[list[str]] = ()
) -> str:
    """A table, a row for each claim and model that both sides were measured on; "" without any.

    more: rows of claims that are no comparison of two methods.

    A claim holds at a share where the first side is better on both domains.
    """
    found = [
        _row(claim, model, measure, sides, shares)
        for claim in CLAIMS
        for model, measure in models.items()
        if (sides := _sides(claim, tables.get(model + claim.kind, [])))
        and (shares := sorted(sides[0].keys() & sides[1].keys(), reverse=True))
    ]
    found += more
    header = ["paper", "claim", "model", "first side, in domain", "second side", "held at"]
    return table(header, found) if found else ""


Side = dict[float, Mapping[str, float]]


def _sides(claim: Claim, rows: Sequence[Mapping[str, Any]]) -> list[Side]:
    """Share -> measures, of both sides."""
    return [
        {
            row["share"]: row["measures"]
            for row in measured(rows)
            if row["label"] == label and row["share"] < claim.below
        }
        for label in (claim.first, claim.second)
    ]


def _row(
    claim: Claim, model: str, measure: str, sides: Sequence[Side], shares: Sequence[float]
) -> list[str]:
    paper = METHODS[claim.key].paper
    texts = [
        f"{label}: " + "; ".join(f"{s:.0%}: {number(side[s][f'in: {measure}'])}" for s in shares)
        for label, side in zip((claim.first, claim.second), sides, strict=True)
    ]
    verdicts = [_verdict(sides[0][s], sides[1][s], measure) for s in shares]
    held = f"{verdicts.count('both')} of {len(shares)} sizes"
    if "one" in verdicts:
        held += f", {verdicts.count('one')} in one domain"
    return [link(paper.title, paper.arxiv), claim.says, model, *texts, held]


def _verdict(first: Mapping[str, float], second: Mapping[str, float], measure: str) -> str:
    names = [f"{domain}: {measure}" for domain in ("in", "out")]
    wins = sum(first[n] != second[n] and better(n, first[n], second[n]) for n in names)
    return ("none", "one", "both")[wins]
