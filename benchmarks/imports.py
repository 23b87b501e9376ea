"""How long `import corank` takes beside `import torch`, each in processes of its own, in turn.

python -m benchmarks.imports [--repeats 10]
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.board.store import Results

RESULTS = Path(__file__).parent / "results" / "imports.json"
CODE = """
import time; w, c = time.perf_counter(), time.process_time()
import {name}
print(time.perf_counter() - w, time.process_time() - c)
"""


def seconds_of(name: str) -> tuple[float, float]:
    """Wall-clock and processor seconds of importing a module in a fresh interpreter."""
    command = [sys.executable, "-c", CODE.format(name=name)]
    wall, cpu = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.split()
    return float(wall), float(cpu)


def measure(repeats: int) -> dict[str, Any]:
    """Medians over rounds, of both and of their ratio round by round."""
    for name in ("torch", "corank"):
        seconds_of(name)  # files into memory
    rounds = [(seconds_of("torch"), seconds_of("corank")) for _ in range(repeats)]
    return {
        "key": "import", "rounds": repeats,
        "torch seconds": median(t[0] for t, _ in rounds),
        "corank seconds": median(c[0] for _, c in rounds),
        "ratio": median(c[0] / t[0] for t, c in rounds),
        "processor ratio": median(c[1] / t[1] for t, c in rounds),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results, row = Results(options.out), measure(options.repeats)
    results.set("environment", {"python": platform.python_version()})
    results.add("imports", row)
    print(f"import corank takes {row['ratio']:.2f} times import torch")
    if options.json:
        sys.stdout.write(json.dumps(results.tables))


if __name__ == "__main__":
    main()
