"""The board of training: a small LLaMA pretrained by every optimiser and factorisation.

    python -m benchmarks.train [--sizes small,medium] [--only REGEX] [--minutes 30]

Each row's learning rate is chosen on tuning text by the same grid for all, with a seed of its own;
then it is run with other seeds. Rows go into the results file as they are made, and those that are
there are left out, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from pathlib import Path

import torch

from benchmarks.board.measure import environment
from benchmarks.board.store import Results
from benchmarks.pretraining.measure import run
from benchmarks.pretraining.rows import GRID, SEEDS, Row, list_rows
from benchmarks.pretraining.task import SIZES, Size

RESULTS = Path(__file__).parent / "results" / "train.json"
TUNING_SEED = 100


def make(size: Size, row: Row, results: Results) -> None:
    """Tune the rate, then run the seeds that are not there yet."""
    if results.has(size.name, f"{row.key}, rate"):
        lr = results.get(size.name, f"{row.key}, rate")["lr"]
    else:
        tuned = [(lr, run(row, size, lr, TUNING_SEED, "tuning")["loss"]) for lr in GRID]
        lr = min(tuned, key=lambda found: math.inf if math.isnan(found[1]) else found[1])[0]
        results.add(size.name, {"key": f"{row.key}, rate", "lr": lr, "tuned": tuned})
    about = {"method": row.method, "kind": row.kind, "parameters": dict(row.parameters), "lr": lr}
    for seed in SEEDS:
        key = f"{row.key}, seed {seed}"
        if not results.has(size.name, key):
            found = run(row, size, lr, seed, "heldout")
            results.add(size.name, {"key": key, "seed": seed} | about | found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default=",".join(SIZES), help="comma-separated names")
    parser.add_argument("--only", default="", help="a regular expression that keys must match")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no row later")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(options.out)
    results.set("environment", environment())
    until = time.monotonic() + 60 * options.minutes
    for size in (SIZES[name] for name in options.sizes.split(",")):
        for row in list_rows(size):
            if time.monotonic() >= until:
                return
            if not re.search(options.only, row.key):
                continue
            began = time.process_time()
            try:
                make(size, row, results)
            except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
                reason = f"{type(error).__name__}: {error}"
                results.add(size.name, {"key": f"{row.key}, error", "error": reason})
                print(size.name, row.key, reason[:150], flush=True)
                continue
            print(size.name, row.key, f"{time.process_time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
