"""What the board at equal bytes says of healing, of other seeds, and of what is not tried yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from benchmarks.board.summary import number, table
from benchmarks.equal.judging import measured
from benchmarks.equal.rows import TRAINED, Row, list_healed

#: What stands behind a model's name in the names of these tables.
HEALED, SEEDS = ", healed", ", seeds"
Rows = Sequence[Mapping[str, Any]]


def render_healed(tables: Mapping[str, Any], model: str, measure: str) -> list[str]:
    """The healed rows of a model, at each size beside what they were before; [] without any."""
    rows = measured(tables.get(model + HEALED, []))
    if not rows:
        return []
    before = {(r["label"], r["share"]): r["measures"] for r in measured(tables[model])}
    tokens = sorted({row["healing"]["tokens"] for row in rows})
    text = (
        "Healed in bfloat16 for as many tokens of the calibration text each, about "
        f"{tokens[0]:,} with padding. Codes stay as they are, so of a model in codes scales, "
        "norms and biases train; " + ", ".join(f"`{key}`" for key in TRAINED) + " train what is "
        "theirs by themselves, for as many."
    )
    names = [f"{domain}: {measure}" for domain in ("in", "out")]
    sign = 1 if measure == "perplexity" else -1
    found = [
        [f"{row['share']:.0%}", row["label"], *(number(row["measures"][name]) for name in names),
         *(number(before[at][name]) if (at := (row["label"], row["share"])) in before else "-"
           for name in names), f"{row['reached']:.1%}", number(row["cpu_seconds"], 0)]
        for row in sorted(rows, key=lambda r: (-r["share"], sign * r["measures"][names[0]]))
    ]  # fmt: skip
    header = ["size", "composition", *names, *(f"{n}, unhealed" for n in names), "bytes reached"]
    return [
        "### After healing",
        f"{text} Rows tried, {coverage(tables[model + HEALED], list_healed())}",
        table([*header, "processor s"], found),
        *_missing(tables, model),
    ]


def render_seeds(tables: Mapping[str, Any], model: str, measure: str) -> list[str]:
    """Mean and span over calibration seeds, of the rows that have several; [] without any."""
    rows = [*measured(tables.get(model, [])), *measured(tables.get(model + SEEDS, []))]
    repeated = {(r["label"], r["share"]) for r in rows if r["seed"]}
    found = []
    for label, share in sorted(repeated):
        own = [r["measures"] for r in rows if (r["label"], r["share"]) == (label, share)]
        spans = []
        for domain in ("in", "out"):
            values = [one[f"{domain}: {measure}"] for one in own]
            spans += [number(mean(values)), f"{number(min(values))} to {number(max(values))}"]
        found.append([f"{share:.0%}", label, str(len(own)), *spans])
    header = ["size", "composition", "seeds"]
    for domain in ("in", "out"):
        header += [f"{domain}: {measure}, mean", "span"]
    return ["### Other calibration text", table(header, found)] if found else []


def coverage(rows: Rows, listed: Iterable[Row]) -> str:
    """How many of the listed rows have been tried at each share, and what at none of its shares."""
    tried, listed = {row["key"] for row in rows}, list(listed)
    counts = "; ".join(
        f"{share:.0%}: {sum(r.key in tried for r in listed if r.share == share)} of "
        f"{sum(r.share == share for r in listed)}"
        for share in sorted({r.share for r in listed}, reverse=True)
    )
    seen = {r.label for r in listed if r.key in tried}
    never = list(dict.fromkeys(r.label for r in listed if r.label not in seen))
    return f"{counts}." + (f" Not tried at any: {', '.join(never)}." if never else "")


def _missing(tables: Mapping[str, Any], model: str) -> list[str]:
    failed = [row for row in tables[model + HEALED] if "error" in row]
    said = "; ".join(f"{row['key']}: {row['error']}" for row in failed)
    return [f"Not possible: {said}."] if said else []
