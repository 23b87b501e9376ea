"""The board of adapters: every method fine-tuned on three tasks at matched and at own budgets.

    python -m benchmarks.adapt [--tasks digits,prose] [--only REGEX] [--minutes 30]

Each row's learning rate is chosen on tuning rows, by the same grid for all, with a seed of its
own; then it is run with three other seeds. Rows go into the results file as they are made, and
those that are there are left out, so a stopped run goes on. A method that has the same parameters
under two budgets is the same run, bit for bit, and is not made twice.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import corank
from benchmarks.board.store import Results
from benchmarks.board.sweep import sweep, tune_and_run
from benchmarks.tuning.measure import FROZEN, FULL, measure, tune
from benchmarks.tuning.rows import GRID, SEEDS, Row, list_rows, sites_of
from benchmarks.tuning.tasks import TASKS, Task

#: The most frozen numbers of a model for which a row is run.
MOST_FROZEN = 100_000_000
RESULTS = Path(__file__).parent / "results" / "adapt.json"


def make(results: Results, table: str, row: Row) -> None:
    """Tune the rate, then run the seeds that are not there yet."""
    task, parameters = TASKS[table], dict(row.parameters)
    about = {"method": row.method, "budget": row.budget, "parameters": parameters}
    if row.method not in (FROZEN, FULL):
        if _take_twin(results, table, row, about):
            return
        require_feasible(task, row)
    trains = row.method != FROZEN or task.head
    tune_and_run(
        results, table, row.key,
        about,
        tune=lambda: tune(task, row.method, parameters, GRID) if trains else {0.0: 0.0},
        higher=task.higher,
        run=lambda lr, seed: measure(task, row.method, parameters, lr, seed),
        seeds=SEEDS,
    )  # fmt: skip


def require_feasible(task: Task, row: Row) -> None:
    """Refuse a row whose frozen random numbers take hours to draw and multiply with."""
    method = corank.registry.METHODS[row.method]
    if "stored" not in method.parameters:
        return
    recipe = method.recipe({**dict(row.parameters), "stored": True})
    frozen = recipe.frozen(sites_of(task))
    if frozen > MOST_FROZEN:
        raise ValueError(
            f"not run: at this budget it multiplies with {frozen:,} frozen random numbers"
        )


def _take_twin(results: Results, table: str, row: Row, about: dict[str, Any]) -> bool:
    """Copy the runs of a row with the same method and parameters, if there is a whole one."""
    runs = [f"seed {seed}" for seed in SEEDS]
    for twin in list_rows(TASKS[table]):
        if twin.key == row.key or _run(twin) != _run(row):
            continue
        if all(results.has(table, f"{twin.key}, {run}") for run in ("rate", *runs)):
            rate = results.get(table, f"{twin.key}, rate")
            results.add(table, rate | {"key": f"{row.key}, rate"})
            for run in runs:
                found = results.get(table, f"{twin.key}, {run}")
                results.add(table, found | about | {"key": f"{row.key}, {run}"})
            return True
    return False


def _run(row: Row) -> tuple[str, dict[str, Any]]:
    if row.method in (FROZEN, FULL):
        return row.method, {}
    return row.method, corank.registry.METHODS[row.method].parameters | dict(row.parameters)


if __name__ == "__main__":
    rows = {name: partial(list_rows, task) for name, task in TASKS.items()}
    sys.exit(sweep(str(__doc__), RESULTS, rows, make))
