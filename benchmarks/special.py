"""The board of special models: convolutions, a mixture of experts, a fine-tuned pair, whole models.

    python -m benchmarks.special [--only REGEX] [--tasks digits,experts] [--minutes 20]

Models are trained first, with fixed seeds, as part of the run. Rows go into the results file as
they are made, and those that are there are left out, so a stopped run goes on. Seconds are of the
processor, one thread.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import torch

from benchmarks.board.measure import environment
from benchmarks.board.store import Results
from benchmarks.board.sweep import fill, options_of
from benchmarks.special_tasks import TASKS
from benchmarks.special_tasks.measure import measure, reference
from benchmarks.special_tasks.task import Special

RESULTS = Path(__file__).parent / "results" / "special.json"


def run(task: Special, only: str, results: Results, until: float) -> None:
    """Make the references and the rows that are not there yet, until the clock says `until`."""
    for name in task.references():
        if not results.has(task.name, name):
            results.add(task.name, reference(task, name))
    rows = [row for row in task.rows() if re.search(only, row.key)]
    fill(
        results, task.name, rows, lambda row: measure(task, row), until,
        lambda row: {"label": row.label, "share": row.share},
    )  # fmt: skip


def main() -> None:
    parser = options_of(str(__doc__), RESULTS)
    parser.add_argument("--tasks", default=",".join(TASKS), help="comma-separated names")
    parser.add_argument("--small", action="store_true", help="models trained within seconds")
    options = parser.parse_args()
    if options.small and options.out == RESULTS:
        options.out = Path("out/bench/special.json")
    torch.set_num_threads(1)
    results = Results(options.out)
    results.set("environment", environment() | {"dtype": "bfloat16"})
    until = time.monotonic() + 60 * options.minutes
    for name in options.tasks.split(","):
        if time.monotonic() < until:
            run(TASKS[name](options.small), options.only, results, until)


if __name__ == "__main__":
    main()
