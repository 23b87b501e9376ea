"""Time and loss of corank's solver against the SVD-LLM recipe done literally, in one run.

python benchmarks/factorise.py --shapes 4096x4096:1024 --repeats 1 --threads 2

The recipe (2403.07378): Cholesky C = S S^T and an explicit inverse of S in float64, the full SVD of
W S in float32, factors U sqrt(s) and sqrt(s) V^T S^-1. Both sides get the same float32 weight and
second moment, and return two factors. Loss is ||(W - B A) C^(1/2)||_F; its ratio is corank's over
the recipe's. Speed-up is the recipe's best seconds over corank's best; the two alternate. The CPU
seconds of both are given too, since other work on the machine stretches the wall clock.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from corank.linalg import energy, project

RESULTS = Path(__file__).parent / "results" / "factorise.json"
DEFAULT = "384x384:96,1536x384:115,384x1536:115,4096x4096:1024,11008x4096:1194"


def make_layer(rows: int, columns: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weight (m, n) with a power-law spectrum, and a second moment with spikes over a power law."""

    def normal(a: int, b: int) -> Tensor:
        return torch.randn(a, b, generator=generator)

    index = torch.arange(1, columns + 1, dtype=torch.float32)
    w = (normal(rows, columns) * index**-0.3) @ normal(columns, columns) / columns
    x = (normal(2 * columns, columns) * index**-0.5) @ normal(columns, columns) / math.sqrt(columns)
    x = x / x.std() + 0.05 * normal(2 * columns, columns)
    x[:, : max(1, columns // 500)] *= 50  # massive channels
    x += 0.5 * normal(1, columns)  # a common direction
    return w, x.T @ x / x.shape[0]


def literal(w: Tensor, c: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """SVD-LLM's factors b (m, r), a (r, n), computed as the paper's code does."""
    root = torch.linalg.cholesky(c.double())
    inverse = torch.linalg.inv(root).float()
    u, s, vh = torch.linalg.svd(w @ root.float(), full_matrices=False)
    half = s[:rank].sqrt()
    return u[:, :rank] * half, (half[:, None] * vh[:rank]) @ inverse


def measure(rows: int, columns: int, rank: int, repeats: int, seed: int) -> dict[str, object]:
    w, c = make_layer(rows, columns, torch.Generator().manual_seed(seed))
    recipes: dict[str, Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]] = {
        "literal": literal,
        "corank": project,
    }
    seconds: dict[str, list[float]] = {name: [] for name in recipes}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in recipes}
    loss: dict[str, float] = {}
    for _ in range(repeats):
        for name, recipe in recipes.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            b, a = recipe(w, c, rank)
            seconds[name].append(time.perf_counter() - start)
            cpu_seconds[name].append(time.process_time() - cpu_start)
            loss[name] = math.sqrt(energy(w - b @ a, c))
    total = math.sqrt(energy(w, c))
    return {
        "shape": [rows, columns],
        "rank": rank,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "relative_loss": {name: value / total for name, value in loss.items()},
        "speedup": min(seconds["literal"]) / min(seconds["corank"]),
        "cpu_speedup": min(cpu_seconds["literal"]) / min(cpu_seconds["corank"]),
        "loss_ratio": loss["corank"] / loss["literal"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default=DEFAULT, help="ROWSxCOLUMNS:RANK, comma-separated")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = []
    for item in options.shapes.split(","):
        shape, rank = item.split(":")
        rows, columns = map(int, shape.split("x"))
        repeats = options.repeats if max(rows, columns) > 2000 else max(5, options.repeats)
        results.append(measure(rows, columns, int(rank), repeats, options.seed))
    environment = {
        "torch": torch.__version__,
        "threads": options.threads,
        "machine": platform.machine(),
        "dtype": "float32",
    }
    table = json.dumps({"environment": environment, "results": results}, indent=1)
    print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(table + "\n")


if __name__ == "__main__":
    main()
