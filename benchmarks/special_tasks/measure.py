"""Making one row: a fresh model in bfloat16, compressed to a share of its bytes, and measured."""

from __future__ import annotations

import time
from typing import Any

import corank
from benchmarks.equal.measure import in_full
from benchmarks.special_tasks.rows import Row
from benchmarks.special_tasks.task import Special
from benchmarks.tuning.measure import GRADIENTS


def measure(task: Special, row: Row) -> dict[str, Any]:
    """The row's figures; bytes are the targeted weights' and, of a delta, what it stores of them.

    Raises what `corank.compress` raises.
    """
    model = task.load()
    composition, method = row.composition, row.composition.method
    labelled = task.loss is not None and bool(composition.needs & GRADIENTS)
    options = task.options() | ({"loss": task.loss} if labelled else {})
    started = time.process_time()
    report = corank.compress(
        model, method if isinstance(method, str) else list(method), keep=row.share,
        targets=task.targets, seed=row.seed, data=task.data(labelled), **options,
        **composition.parameters,
    )  # fmt: skip
    spent = time.process_time() - started
    totals = report.totals
    return {
        "key": row.key, "label": row.label, "share": row.share, "seed": row.seed,
        "bytes": totals["bytes_after"], "dense_bytes": totals["bytes_before"],
        "reached": totals["bytes_after"] / totals["bytes_before"],
        "cpu_seconds": spent, "measures": task.evaluate(in_full(model)),
    }  # fmt: skip


def reference(task: Special, name: str) -> dict[str, Any]:
    """The measures of a model that nothing was done to."""
    return {"key": name, "measures": task.evaluate(in_full(task.references()[name]))}
