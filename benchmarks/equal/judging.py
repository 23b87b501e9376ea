"""What the board at equal bytes has to reach, and whether it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.board.judging import MARKS
from benchmarks.board.summary import number
from benchmarks.equal.rows import AUTO, PLAIN

#: At this share and below, auto has to be better than plain codes.
LOW = 0.25
DOMAINS = {"in": "in domain", "out": "out of domain"}
Rows = Sequence[Mapping[str, Any]]


def judge(tables: Mapping[str, Any], models: Mapping[str, str]) -> list[list[str]]:
    """Rows [what, to reach, reached, met or not met]; `models` has each one's main measure.

    A target that is out of reach of the original itself is said to be.
    """
    found = []
    for model, measure in models.items():
        dense = original(tables.get(model, []))
        rows = measured(tables.get(model, []))
        for share in sorted({row["share"] for row in rows}, reverse=True):
            for domain in DOMAINS:
                at = [row for row in rows if row["share"] == share]
                name = f"{domain}: {measure}"
                found += _judge(model, at, share, domain, name, dense.get(name))
    return found


def original(rows: Rows) -> dict[str, float]:
    """The measures of the original model, {} without its row."""
    return next((dict(row["measures"]) for row in rows if row["key"] == "dense"), {})


def beyond(rows: Rows, measure: str) -> list[Mapping[str, Any]]:
    """The best single method at each share where it is better than auto and than the original."""
    found, dense = [], original(rows)[measure]
    for auto in (row for row in measured(rows) if row["label"] == AUTO):
        at = [row for row in measured(rows) if is_single(row) and row["share"] == auto["share"]]
        single = best(at, measure)
        least = (auto["measures"][measure], dense)
        if single and not any(better(measure, x, single["measures"][measure]) for x in least):
            found.append(single)
    return found


def measured(rows: Rows) -> list[Mapping[str, Any]]:
    """The rows that have figures at a share."""
    return [row for row in rows if "measures" in row and "share" in row]


def better(measure: str, value: float, than: float) -> bool:
    """Whether `value` of that measure is at least as good."""
    return value <= than if measure.endswith("perplexity") else value >= than


def best(rows: Rows, measure: str) -> Mapping[str, Any] | None:
    """The row that is best in a measure."""
    sign = 1 if measure.endswith("perplexity") else -1
    return min(rows, key=lambda row: sign * row["measures"][measure], default=None)


def is_single(row: Mapping[str, Any]) -> bool:
    """Whether it is one published method as it is."""
    return row["label"] != AUTO and " + " not in row["label"]


def _judge(
    model: str, rows: Rows, share: float, domain: str, measure: str, dense: float | None
) -> list[list[str]]:
    auto = next((row for row in rows if row["label"] == AUTO), None)
    if auto is None:
        return []
    value, made = auto["measures"][measure], []
    where = f"{model} at {share:.0%} of the bytes, {DOMAINS[domain]}: {measure.split(': ')[1]}"
    name = auto["method"].removeprefix("auto: ")
    if (single := best([r for r in rows if is_single(r)], measure)) is not None:
        other = single["measures"][measure]
        mark = MARKS[met := better(measure, value, other)]
        if not met and dense is not None and not better(measure, dense, other):
            mark += f": the original has {number(dense)}"
        made.append([
            f"{where} of auto, beside the best single method",
            f"{number(other)} ({single['label']})", f"{number(value)} ({name})", mark,
        ])  # fmt: skip
    plain = [r for r in rows if r["label"].partition("(")[0] in PLAIN and is_single(r)]
    if share <= LOW and (codes := best(plain, measure)) is not None:
        other = codes["measures"][measure]
        met = value != other and better(measure, value, other)
        made.append([
            f"{where} of auto, beside plain codes", f"over {number(other)} ({codes['label']})",
            f"{number(value)}", MARKS[met],
        ])  # fmt: skip
    return made
