"""Seconds of orthogonal matching pursuit beside scikit-learn's, on the same rows and atoms.

    python -m benchmarks.pursuit [--out FILE]

Rows are of a random matrix, atoms its right singular vectors a little off, both in float64. A
ratio is scikit-learn's best seconds of the processor over corank's; the two alternate, three times.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from sklearn.linear_model import orthogonal_mp_gram
from torch.nn.functional import normalize

from corank.linalg import matching_pursuit

RESULTS = Path(__file__).parent / "results" / "pursuit.json"
#: Rows, columns, atoms, nonzeros.
SIZES = ((384, 384, 192, 24), (384, 384, 300, 96), (1536, 384, 384, 200))
REPEATS = 3


def compare(rows: int, columns: int, atoms: int, nonzeros: int) -> dict[str, Any]:
    """The best seconds of both, and the largest difference of their codes."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    d = torch.linalg.svd(a, full_matrices=False).Vh[:atoms]
    d = normalize(d + 0.02 * torch.randn(d.shape, generator=generator, dtype=d.dtype), dim=1)
    seconds: dict[str, list[float]] = {"corank": [], "scikit-learn": []}
    for _ in range(REPEATS):
        started = time.process_time()
        ours = matching_pursuit(a, d, nonzeros)
        seconds["corank"].append(time.process_time() - started)
        started = time.process_time()
        found = orthogonal_mp_gram((d @ d.mT).numpy(), (d @ a.mT).numpy(), n_nonzero_coefs=nonzeros)
        seconds["scikit-learn"].append(time.process_time() - started)
    best = {name: min(took) for name, took in seconds.items()}
    return {
        "size": [rows, columns, atoms, nonzeros], "seconds": best,
        "ratio": best["scikit-learn"] / best["corank"],
        "difference": float((ours - torch.from_numpy(found).mT).abs().max()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [compare(*size) for size in SIZES]
    for row in found:
        print(row["size"], f"{row['ratio']:.1f} times faster, codes within {row['difference']:.1e}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"pursuit": found}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
