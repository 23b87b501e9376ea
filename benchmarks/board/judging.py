"""What the board has to reach, and whether it does."""

from __future__ import annotations

from typing import Any

from benchmarks.board.rows import LITERAL
from benchmarks.board.summary import Entry, list_entries, number

COSINE = "mean cosine"
#: Mean cosine at keep 0.4: (healed, domain) -> at least.
TO_REACH = {(False, "in"): 0.83, (False, "out"): 0.78, (True, "in"): 0.93, (True, "out"): 0.90}
SHARE_OF_IDEAL, IMPORT_RATIO = 0.85, 1.15
MARKS = {True: "met", False: "not met"}


def judge_board(tables: dict[str, Any]) -> list[list[str]]:
    """Rows [what, to reach, reached, met or not met] from the results of `benchmarks.compress`."""
    rows = []
    entries = [e for e in list_entries(tables.get("MiniLM", [])) if e.keep == 0.4]
    for (healed, domain), least in TO_REACH.items():
        found = best([e for e in entries if e.healed == healed], f"{domain}: {COSINE}")
        if found is not None:
            value = found.measure(f"{domain}: {COSINE}") or 0.0
            how = "after two minutes of healing" if healed else "nothing trained"
            where = "in domain" if domain == "in" else "out of domain"
            what = f"MiniLM at keep 0.4, {how}, {where}: {COSINE}"
            reached = f"{number(value)} ({found.name}, {found.allocate})"
            rows.append([what, f"at least {least}", reached, MARKS[value >= least]])
    entries = list_entries(tables.get("reference LM", []))
    for keep in sorted({e.keep for e in entries if e.keep is not None}):
        for domain in ("in", "out"):
            rows += _against_literal([e for e in entries if e.keep == keep], keep, domain)
    return rows


def best(entries: list[Entry], measure: str) -> Entry | None:
    """The entry with the largest value; one of eight-bit codes and the like is no contender."""
    found = [e for e in entries if e.keep is not None and e.measure(measure) is not None]
    return max(found, key=lambda e: e.measure(measure) or 0.0, default=None)


def _against_literal(entries: list[Entry], keep: float, domain: str) -> list[list[str]]:
    """corank's worst calibration seed against the literal recipe's best."""
    measure = f"{domain}: perplexity"
    own = [
        e for e in entries if (e.method, e.allocate, e.healed) == ("corank", "greedy_floor", False)
    ]
    other = [e for e in entries if e.method == LITERAL]
    if not own or not other:
        return []
    mine, theirs = own[0].values(measure), other[0].values(measure)
    where = "in domain" if domain == "in" else "out of domain"
    what = f"reference LM at keep {keep}, {where}: perplexity of corank below the literal recipe's"
    reached = f"{number(max(mine), 2)} (worst of {len(mine)})"
    least = f"below {number(min(theirs), 2)} (best of {len(theirs)})"
    verdict = MARKS[max(mine) < min(theirs)]
    if min(len(mine), len(theirs)) < 2:
        verdict += ", on one seed"
    return [[what, least, reached, verdict]]


def judge_linear(tables: dict[str, Any]) -> list[list[str]]:
    """The same for the speed of a factored layer."""
    rows = []
    for row in tables.get("linear", []):
        if row["tokens"] >= 512:
            met = row["share of ideal"] >= SHARE_OF_IDEAL
            least, reached = f"at least {SHARE_OF_IDEAL:.0%}", f"{row['share of ideal']:.0%}"
            what = f"share of the ideal speed-up of a halved Linear, {row['tokens']} tokens"
        elif row["tokens"] == 1:
            met, least = row["speed-up"] >= 1, "at least 1"
            what, reached = "speed-up of a halved Linear, 1 token", number(row["speed-up"], 2)
        else:
            continue
        rows.append([what, least, reached, MARKS[met]])
    return rows


def judge_factorise(tables: dict[str, Any]) -> list[list[str]]:
    """Five times faster than the literal recipe on large layers, no slower on MiniLM's."""
    rows = []
    for row in tables.get("results", []):
        needed = 5.0 if max(row["shape"]) >= 4096 else 1.0
        good = row["speedup"] >= needed and row["loss_ratio"] <= 1.001
        shape = " x ".join(map(str, row["shape"]))
        rows.append([
            f"factorising {shape} to rank {row['rank']}: speed over the literal recipe, at a loss "
            "within 0.1%", f"at least {needed:g}", f"{row['speedup']:.2f}",
            "met" if good else "not met",
        ])  # fmt: skip
    return rows


def judge_imports(tables: dict[str, Any]) -> list[list[str]]:
    """The same for the time that `import corank` takes."""
    return [
        ["`import corank` over `import torch`", f"at most {IMPORT_RATIO}", number(row["ratio"], 2),
         MARKS[row["ratio"] <= IMPORT_RATIO]]
        for row in tables.get("imports", [])
    ]  # fmt: skip
