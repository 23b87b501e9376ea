"""Making one row: a fresh model in bfloat16, compressed to a share of its bytes, and measured."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.equal.measure import in_full
from benchmarks.special_tasks.rows import Row
from benchmarks.special_tasks.task import Special


def measure(task: Special, row: Row) -> dict[str, Any]:
    """The row's figures; bytes are the targeted weights' and, of a delta, what it stores of them.

    Raises what `task.make` raises.
    """
    started = time.process_time()
    model, totals = task.make(row)
    spent = time.process_time() - started
    return {
        "key": row.key, "label": row.label, "share": row.share, "seed": row.seed,
        "bytes": totals["bytes_after"], "dense_bytes": totals["bytes_before"],
        "reached": totals["bytes_after"] / totals["bytes_before"],
        "cpu_seconds": spent, "measures": task.evaluate(in_full(model)),
    }  # fmt: skip


def reference(task: Special, name: str) -> dict[str, Any]:
    """The measures of a model that nothing was done to."""
    return {"key": name, "measures": task.evaluate(in_full(task.references()[name]))}
