"""One file of the reference LM, loaded at many sizes: how smoothly its perplexity rises.

python -m benchmarks.any_size [--small]
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import corank
from benchmarks.board.measure import environment
from benchmarks.board.store import Results
from benchmarks.board.tasks import LanguageModel
from benchmarks.equal.measure import in_full, load
from corank.report.speed import count_bytes

RESULTS = Path(__file__).parent / "results" / "any_size.json"
#: Of the bytes that the targeted weights store in bfloat16.
SHARES = (0.12, 0.18, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8)
#: Windows of 256 tokens that each size is evaluated on, of a domain.
WINDOWS = 16


def measure(small: bool, results: Results) -> None:
    """Save one file, and load it at every size that it reaches."""
    task = LanguageModel(small)
    task.sizes = replace(task.sizes, evaluation=min(task.sizes.evaluation, WINDOWS))
    model = load(task)
    whole = count_bytes(model)
    data = task.calibration(0)
    report = corank.compress(model, "bitstack", keep=1.0, targets=task.targets, data=data)
    dense = report.totals["bytes_before"]
    with tempfile.TemporaryDirectory() as name:
        corank.save(model, Path(name) / "model")
        for share in SHARES:
            size = whole - dense + int(share * dense)
            row: dict[str, Any] = {"key": f"{share:.2f}", "share": share, "label": "bitstack"}
            try:
                found = corank.load(Path(name) / "model", size=f"{size / 1e6:.6f}MB")
                reached = (count_bytes(found) - whole + dense) / dense
                row |= {"reached": reached, "measures": task.evaluate(in_full(found))}
            except ValueError as error:
                row["error"] = str(error)
            results.add("sizes", row)
            print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--small", action="store_true", help="little text, in a minute")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(Path("out/bench/any_size.json") if options.small else RESULTS)
    results.set("environment", environment() | {"dtype": "bfloat16"})
    measure(options.small, results)


if __name__ == "__main__":
    main()
