"""The board of adapters: every method fine-tuned on three tasks at matched and at own budgets.

    python -m benchmarks.adapt [--tasks digits,prose] [--only REGEX] [--minutes 30]

Each row's learning rate is chosen on tuning rows, by the same grid for all, with a seed of its
own; then it is run with three other seeds. Rows go into the results file as they are made, and
those that are there are left out, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

import torch

from benchmarks.board.measure import environment
from benchmarks.board.store import Results
from benchmarks.tuning.measure import FROZEN, measure, tune
from benchmarks.tuning.rows import GRID, SEEDS, Row, list_rows
from benchmarks.tuning.tasks import TASKS, Task

RESULTS = Path(__file__).parent / "results" / "adapt.json"


def make(task: Task, row: Row, results: Results) -> None:
    """Tune the rate, then run the seeds that are not there yet."""
    parameters = dict(row.parameters)
    if results.has(task.name, f"{row.key}, rate"):
        lr = results.get(task.name, f"{row.key}, rate")["lr"]
    elif row.method == FROZEN and not task.head:
        lr = 0.0
    else:
        reached = tune(task, row.method, parameters, GRID)
        lr = (max if task.higher else min)(reached, key=lambda rate: reached[rate])
        results.add(
            task.name, {"key": f"{row.key}, rate", "lr": lr, "tuned": sorted(reached.items())}
        )
    for seed in SEEDS:
        key = f"{row.key}, seed {seed}"
        if not results.has(task.name, key):
            found = measure(task, row.method, parameters, lr, seed)
            about = {"method": row.method, "budget": row.budget, "parameters": parameters, "lr": lr}
            results.add(task.name, {"key": key} | about | found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default=",".join(TASKS), help="comma-separated names")
    parser.add_argument("--only", default="", help="a regular expression that keys must match")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no row later")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(options.out)
    results.set("environment", environment())
    until = time.monotonic() + 60 * options.minutes
    for name in options.tasks.split(","):
        task = TASKS[name]
        for row in list_rows(task):
            if time.monotonic() >= until:
                return
            if not re.search(options.only, row.key):
                continue
            try:
                make(task, row, results)
            except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
                reason = f"{type(error).__name__}: {error}"
                results.add(task.name, {"key": f"{row.key}, error", "error": reason})
                print(name, row.key, reason[:150], flush=True)
                continue
            print(name, row.key, flush=True)


if __name__ == "__main__":
    sys.exit(main())
