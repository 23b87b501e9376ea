"""The board of training: every optimiser and factorisation on language models, texts and digits.

    python -m benchmarks.train [--tasks small,digits] [--only REGEX] [--minutes 30]

Each row's learning rate is chosen on tuning data by the same grid for all, with a seed of its own;
then it is run with other seeds. Rows go into the results file as they are made, and those that
are there are left out, so a stopped run goes on.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from benchmarks.board.store import Results
from benchmarks.board.sweep import sweep, tune_and_run
from benchmarks.training.measure import measure, tune
from benchmarks.training.rows import GRIDS, SEEDS, Row, list_rows
from benchmarks.training.tasks import TASKS

RESULTS = Path(__file__).parent / "results" / "train.json"
TUNING_SEED = 100


def make(results: Results, table: str, row: Row) -> None:
    """Tune the rate, then run the seeds that are not there yet."""
    task = TASKS[table]
    tune_and_run(
        results, table, row.key,
        {"name": row.name, "kind": row.kind, "parameters": dict(row.parameters)},
        tune=lambda: {lr: tune(row, task, lr, TUNING_SEED) for lr in GRIDS[table]},
        higher=task.higher,
        run=lambda lr, seed: measure(row, task, lr, seed),
        seeds=SEEDS[table],
    )  # fmt: skip


if __name__ == "__main__":
    rows = {name: partial(list_rows, name) for name in TASKS}
    sys.exit(sweep(str(__doc__), RESULTS, rows, make))
