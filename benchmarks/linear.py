"""Speed of a factored Linear(2048, 2048) at half the FLOPs beside the dense one.

    python -m benchmarks.linear [--repeats 30] [--threads 2]

Rank 512 halves the multiplications, so 2 is the ideal speed-up. In every round both layers run, in
turn; the speed-up is the median over rounds of the dense layer's seconds over the factored one's,
each the mean of several calls.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks.board.measure import environment
from benchmarks.board.store import Results
from corank.models import find_sites, install
from corank.operators import LowRank

RESULTS = Path(__file__).parent / "results" / "linear.json"
WIDTH, RANK, IDEAL = 2048, 512, 2.0
TOKENS = (1, 64, 512, 2048)
WORK = 2048  # tokens per timing: short inputs are run several times


def make_layers() -> tuple[nn.Module, nn.Module]:
    """A dense layer without bias, and one of corank's that holds its truncated factors."""
    torch.manual_seed(0)
    dense, small = (nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False)) for _ in range(2))
    factors = torch.randn(WIDTH, RANK) / RANK**0.5, torch.randn(RANK, WIDTH) / WIDTH**0.5
    install(small, find_sites(small)[0], LowRank(*factors), None)
    return dense.eval(), small.eval()


def seconds_of(layer: nn.Module, x: torch.Tensor, calls: int) -> float:
    """Mean seconds of one forward pass."""
    start = time.perf_counter()
    for _ in range(calls):
        layer(x)
    return (time.perf_counter() - start) / calls


@torch.no_grad()
def measure(tokens: int, repeats: int) -> dict[str, Any]:
    """One row: the median ratio over the rounds, its quartiles, and the share of the ideal."""
    dense, small = make_layers()
    x, calls = torch.randn(tokens, WIDTH), max(1, min(100, WORK // tokens))
    for layer in (dense, small):
        seconds_of(layer, x, calls)
    ratios = []
    for turn in range(repeats):
        order = (dense, small) if turn % 2 else (small, dense)
        spent = {id(layer): seconds_of(layer, x, calls) for layer in order}
        ratios.append(spent[id(dense)] / spent[id(small)])
    ratios.sort()
    return {
        "key": f"{tokens:5d} tokens", "tokens": tokens, "rounds": repeats,
        "speed-up": median(ratios), "share of ideal": median(ratios) / IDEAL,
        "quartiles": [ratios[repeats // 4], ratios[(3 * repeats) // 4]],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = Results(options.out)
    results.set("environment", environment())
    for tokens in TOKENS:
        row = measure(tokens, options.repeats)
        results.add("linear", row)
        print(f"{tokens:5d} tokens: {row['speed-up']:.2f}x, {row['share of ideal']:.0%} of ideal")
    if options.json:
        sys.stdout.write(json.dumps(results.tables))


if __name__ == "__main__":
    main()
