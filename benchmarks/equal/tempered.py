"""What is better than the original itself, with the logits of both at other temperatures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

import corank
from benchmarks.board.summary import number, table
from benchmarks.board.tasks import Task
from benchmarks.equal.judging import beyond
from benchmarks.equal.measure import in_full, load
from benchmarks.equal.rows import Row, list_rows

#: What stands behind a model's name in the name of this table.
TEMPERED = ", tempered"
TEMPERATURES = (1.0, 1.05, 1.1, 1.15)
TEXT = """\
One reason: the original is too sure of itself on text unlike what it was trained on, and is better
there with its logits divided by a temperature above one. Below are the perplexities of the original
and of what was better than it, at several temperatures. What a method gains beyond the original at
its best temperature is not explained by this."""


def list_tempered(tables: Mapping[str, Any], model: str, measure: str) -> list[Row]:
    """The rows that are better than `auto` and the original out of domain."""
    keys = {row["key"] for row in beyond(tables[model], f"out: {measure}")}
    return [row for row in list_rows() if row.key in keys]


def temper(task: Task, row: Row | None) -> dict[str, Any]:
    """Measures of the row's model, or of the original, by temperature."""
    model = load(task)
    if row is not None:
        data = task.calibration(row.seed)
        corank.compress(
            model, list(row.steps), keep=row.share, targets=task.targets, data=data, seed=row.seed
        )
    model = in_full(model)
    found = {"key": row.key if row else "dense", "label": row.label if row else "the original"}
    return found | {"share": row.share if row else None} | {
        "tempered": {str(t): _at(task, model, t) for t in TEMPERATURES}
    }  # fmt: skip


def render_tempered(tables: Mapping[str, Any], model: str, measure: str) -> list[str]:
    """The section; empty where nothing was measured."""
    rows = tables.get(model + TEMPERED, [])
    if not any(row["key"] == "dense" for row in rows):
        return []
    name = f"out: {measure}"
    rows = sorted(rows, key=lambda row: (row["key"] != "dense", -(row["share"] or 0)))
    shown = [
        [row["label"], f"{row['share']:.0%}" if row["share"] else "",
         *(number(row["tempered"][str(t)][name]) for t in TEMPERATURES)]
        for row in rows
    ]  # fmt: skip
    header = [f"out of domain: {measure} of", "size", *(f"at {t:g}" for t in TEMPERATURES)]
    return ["### Better than the original", TEXT, table(header, shown)]


def _at(task: Task, model: nn.Module, temperature: float) -> dict[str, float]:
    with _divided(model, temperature):
        return task.evaluate(model)


@contextmanager
def _divided(model: nn.Module, temperature: float) -> Iterator[None]:
    def divide(module: nn.Module, inputs: Any, output: Any) -> Any:
        output["logits"] = output["logits"] / temperature
        return output

    handle = model.register_forward_hook(divide)
    try:
        yield
    finally:
        handle.remove()
