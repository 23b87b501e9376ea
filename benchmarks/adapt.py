"""The board of adapters: every method fine-tuned on three tasks at matched and at own budgets.

    python -m benchmarks.adapt [--tasks digits,prose] [--only REGEX] [--minutes 30]

Each row's learning rate is chosen on tuning rows, by the same grid for all, with a seed of its
own; then it is run with three other seeds. Rows go into the results file as they are made, and
those that are there are left out, so a stopped run goes on.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from benchmarks.board.store import Results
from benchmarks.board.sweep import sweep, tune_and_run
from benchmarks.tuning.measure import FROZEN, measure, tune
from benchmarks.tuning.rows import GRID, SEEDS, Row, list_rows
from benchmarks.tuning.tasks import TASKS

RESULTS = Path(__file__).parent / "results" / "adapt.json"


def make(results: Results, table: str, row: Row) -> None:
    """Tune the rate, then run the seeds that are not there yet."""
    task, parameters = TASKS[table], dict(row.parameters)
    trains = row.method != FROZEN or task.head
    tune_and_run(
        results, table, row.key,
        {"method": row.method, "budget": row.budget, "parameters": parameters},
        tune=lambda: tune(task, row.method, parameters, GRID) if trains else {0.0: 0.0},
        higher=task.higher,
        run=lambda lr, seed: measure(task, row.method, parameters, lr, seed),
        seeds=SEEDS,
    )  # fmt: skip


if __name__ == "__main__":
    rows = {name: partial(list_rows, task) for name, task in TASKS.items()}
    sys.exit(sweep(str(__doc__), RESULTS, rows, make))
