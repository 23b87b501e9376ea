"""The board at equal bytes: structures, codes and their compositions, on two models, two domains.

    python -m benchmarks.equal_bytes [--only REGEX] [--models MiniLM] [--shares 0.25] [--minutes 20]

Each row compresses a fresh bfloat16 copy of a model to a share of the bytes that its targeted
weights store, indices and scales included, and measures it on evaluation text, which nothing here
is tuned on. Rows go into the results file as they are made, and those that are there are left out,
so a stopped run goes on. Run it with OMP_NUM_THREADS=1 for processor times of one thread.
"""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path

from benchmarks.board.measure import environment
from benchmarks.board.store import Results
from benchmarks.board.sweep import fill, options_of
from benchmarks.board.tasks import TASKS, Task
from benchmarks.equal.measure import in_full, load, measure
from benchmarks.equal.more import HEALED, SEEDS
from benchmarks.equal.rows import SHARES, Row, list_healed, list_rows, list_seeds
from benchmarks.equal.tempered import TEMPERED, list_tempered, temper

RESULTS = Path(__file__).parent / "results" / "equal_bytes.json"
SMALL = r"^(gptq|svd_llm)\b[^+]*, 40%"


def run(
    task: Task, kind: str, rows: list[Row], results: Results, folder: Path, until: float
) -> None:
    """Make the rows of a kind that are not there yet, until the clock says `until`."""
    if not results.has(task.name, "dense"):
        measures = task.evaluate(in_full(load(task)))
        results.add(task.name, {"key": "dense", "measures": measures})
    fill(
        results, task.name + kind, rows, lambda row: measure(task, row, folder), until,
        lambda row: {"label": row.label, "share": row.share},
    )  # fmt: skip


def run_tempered(task: Task, results: Results, until: float) -> None:
    """What is better than the original, and the original, at other temperatures; made anew."""
    rows = list_tempered(results.tables, task.name, "perplexity")
    results.set(task.name + TEMPERED, [])
    for row in [None, *rows]:
        if time.monotonic() < until:
            results.add(task.name + TEMPERED, temper(task, row))


def main() -> None:
    parser = options_of(str(__doc__), RESULTS)
    parser.add_argument("--models", default=",".join(TASKS), help="comma-separated names")
    parser.add_argument("--shares", default=",".join(map(str, SHARES)))
    parser.add_argument("--temperatures", action="store_true", help="nothing else: why some rows "
                        "are better than the original")  # fmt: skip
    parser.add_argument("--small", action="store_true", help="few texts, few rows, in a minute")
    options = parser.parse_args()
    if options.small and options.out == RESULTS:
        options.out = Path("out/bench/equal_bytes.json")
    results = Results(options.out)
    results.set("environment", environment() | {"dtype": "bfloat16"})
    only = options.only or (SMALL if options.small else "")
    shares = [float(share) for share in options.shares.split(",")]
    listed = {"": list_rows(shares), HEALED: list_healed(), SEEDS: list_seeds()}
    rows = {
        kind: [row for row in found if re.search(only, row.key)] for kind, found in listed.items()
    }
    until = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models.split(","):
            task = TASKS[name](options.small)
            if options.temperatures:
                run_tempered(task, results, until)
                continue
            results.set(f"{name} sizes", vars(task.sizes))
            for kind, wanted in rows.items():
                run(task, kind, wanted, results, Path(folder), until)


if __name__ == "__main__":
    main()
