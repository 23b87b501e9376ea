"""Papers' headline claims, each tried with small runs.

    python -m benchmarks.claims [--only REGEX] [--minutes 20]

Rates and runs go into the results file as they are made, and those that are there are left out,
so a stopped run goes on. `python -m benchmarks.pages` writes docs/claims.md from it.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import torch

from benchmarks.board.measure import environment
from benchmarks.board.store import Results
from benchmarks.board.sweep import options_of
from benchmarks.claiming.listed import CLAIMS
from benchmarks.claiming.runs import make

RESULTS = Path(__file__).parent / "results" / "claims.json"


def main() -> None:
    options = options_of(str(__doc__), RESULTS).parse_args()
    torch.set_num_threads(1)
    results = Results(options.out)
    results.set("environment", environment())
    until = time.monotonic() + 60 * options.minutes
    for claim in CLAIMS:
        if not claim.possible or not re.search(options.only, claim.key):
            continue
        for setting in claim.settings:
            if time.monotonic() >= until:
                return
            started = time.process_time()
            try:
                make(setting, results)
            except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
                print(f"{claim.key}: {setting.key}: {type(error).__name__}: {error}"[:400])
                results.add("errors", {"key": setting.key, "error": str(error)})
            print(f"{time.process_time() - started:6.1f} s  {setting.key}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
