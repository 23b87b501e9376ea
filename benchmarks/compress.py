"""The board: every compression method at several budgets, on two models, each on two domains.

    python -m benchmarks.compress [--only REGEX] [--models MiniLM] [--keeps 0.4,0.6] [--minutes 20]

Each row compresses a fresh copy of a model and measures it on evaluation text, which nothing here
is tuned on. Rows go into the results file as they are made, and those that are there are left
out, so a stopped run goes on. Run it with OMP_NUM_THREADS=1 for processor times of one thread.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.board.measure import (
    HEALING_SECONDS,
    Collected,
    Made,
    environment,
    measure,
    measure_speeds,
)
from benchmarks.board.rows import KEEPS, Row, list_rows
from benchmarks.board.store import Results
from benchmarks.board.tasks import TASKS, Task

RESULTS = Path(__file__).parent / "results" / "compress.json"
SMALL = r"^(svd|literal SVD-LLM|svd_llm|kfac_svd|corank), keep 0.4, .*seed 0$"


def run(
    task: Task, rows: list[Row], results: Results, statistics: Path, until: float, healing: float
) -> None:
    """Make the rows that are not there yet, until the clock says `until`."""
    collected = Collected(task, statistics)
    if not results.has(task.name, "dense"):
        results.add(task.name, {"key": "dense", "measures": task.evaluate(task.load())})
    last: Made | None = None
    for row in rows:
        if time.monotonic() >= until:
            return
        if results.has(task.name, row.key):
            continue
        try:
            found, last = measure(task, row, collected, healing, last)
        except (ValueError, RuntimeError) as error:
            found = {"key": row.key, "error": f"{type(error).__name__}: {error}"}
        results.add(task.name, found)
        print(task.name, row.key, found.get("measures") or found.get("error"), flush=True)


def run_speeds(task: Task, keeps: list[float], results: Results, statistics: Path) -> None:
    """The speed of each budget, once."""
    for keep in keeps:
        if not results.has(f"{task.name} speed", f"keep {keep}"):
            made = measure_speeds(task, keep, Collected(task, statistics))
            results.add(f"{task.name} speed", made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a regular expression that keys must match")
    parser.add_argument("--models", default=",".join(TASKS), help="comma-separated names")
    parser.add_argument("--keeps", default=",".join(map(str, KEEPS)))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no row later")
    parser.add_argument("--healing-seconds", type=float, default=HEALING_SECONDS)
    parser.add_argument("--small", action="store_true", help="few texts, few rows, in a minute")
    parser.add_argument("--no-speed", action="store_true")
    parser.add_argument("--out", type=Path, help="default: the committed results, unless --small")
    parser.add_argument("--statistics", type=Path, help="a folder that keeps statistics")
    parser.add_argument("--json", action="store_true", help="print the results at the end")
    options = parser.parse_args()
    out = options.out or (Path("out/bench/compress.json") if options.small else RESULTS)
    results = Results(out)
    results.set("environment", environment())
    keeps = [float(keep) for keep in options.keeps.split(",")]
    only = options.only or (SMALL if options.small else "")
    rows = [r for r in list_rows() if r.keep in (None, *keeps) and re.search(only, r.key)]
    until = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.statistics or Path(temporary)
        for name in options.models.split(","):
            task = TASKS[name](options.small)
            results.set(f"{name} sizes", vars(task.sizes))
            run(task, rows, results, folder, until, options.healing_seconds)
            if not options.no_speed:
                run_speeds(task, keeps[:1] if options.small else keeps, results, folder)
    if options.json:
        sys.stdout.write(out.read_text())


if __name__ == "__main__":
    main()
