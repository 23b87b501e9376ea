"""A training step of structured weights at half the parameters, over the dense one's, in one run.

    python -m benchmarks.structured [--widths 1024] [--ways sltrain,phm] [--threads 2]

A block of a LLaMA (three feed-forward weights of 2.75 times the width) with fused AdamW, forward
and backward included; the ways take turns, ratios are of medians. Half the parameters is half of
each linear layer's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW

import corank
from benchmarks.board.measure import environment
from benchmarks.board.store import Results
from corank.training import start_model

RESULTS = Path(__file__).parent / "results" / "structured.json"
LAYERS, BATCH, LENGTH, WORDS = 1, 4, 128, 512
DENSITY = 0.03


def low_rank(rows: int, columns: int) -> dict[str, Any]:
    """The rank at which two factors are half of a weight."""
    return {"rank": rows * columns // (2 * (rows + columns))}


def with_sparse(rows: int, columns: int) -> dict[str, Any]:
    """The rank that a sparse part beside the factors leaves of a half."""
    return {"rank": int((0.5 - DENSITY) * rows * columns / (rows + columns)), "density": DENSITY}


WAYS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "spectral_init": low_rank,
    "sltrain": with_sparse,
    "lost": with_sparse,
    "phm": lambda rows, columns: {"n": 2},
}


def build(width: int, method: str | None) -> nn.Module:
    """The block, dense or with every linear layer replaced."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=width, intermediate_size=width * 11 // 4, use_cache=False,
        num_hidden_layers=LAYERS, num_attention_heads=width // 64, max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = start_model(config, "causal", 0).train()
    if method:
        sites = corank.models.find_sites(model, "all-linear")
        targets = {site.name: WAYS[method](*site.shape) for site in sites if "layers" in site.name}
        corank.factorize(model, method, targets=targets)
    return model


def measure(width: int, ways: list[str], rounds: int) -> dict[str, Any]:
    """Median seconds of a step, parameters of the linear layers, both over the dense model's."""
    models = {name: build(width, None if name == "dense" else name) for name in ("dense", *ways)}
    optimizers = {
        name: AdamW([p for p in model.parameters() if p.requires_grad], 1e-3, fused=True)
        for name, model in models.items()
    }
    ids = torch.randint(WORDS, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 1):
        for name, model in models.items():
            began = time.perf_counter()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizers[name].step()
            optimizers[name].zero_grad()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    taken = {name: median(found) for name, found in seconds.items()}
    stored = {
        name: sum(p.numel() for n, p in model.named_parameters() if "layers" in n)
        for name, model in models.items()
    }
    return {
        "key": f"width {width}",
        "milliseconds": {name: 1e3 * s for name, s in taken.items()},
        "over_dense": {name: s / taken["dense"] for name, s in taken.items()},
        "parameters_over_dense": {name: n / stored["dense"] for name, n in stored.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", default="1024")
    parser.add_argument("--ways", default=",".join(WAYS), help="the starts of some take an SVD")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = Results(options.out)
    results.set("environment", environment())
    for width in map(int, options.widths.split(",")):
        row = measure(width, options.ways.split(","), options.rounds)
        results.add("steps", row | {"threads": options.threads})
        for name, ratio in row["over_dense"].items():
            parameters = row["parameters_over_dense"][name]
            print(f"{row['key']} {name}: {ratio:.2f} of the time, {parameters:.2f} of the numbers")


if __name__ == "__main__":
    main()
