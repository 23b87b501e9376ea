"""What corank's optimisers cost beside torch's fused AdamW and galore-torch's refresh, in one run.

    python -m benchmarks.optim [--only REGEX] [--steps 100] [--threads 1]

Times are of the processor, taken in turns round by round; ratios are of medians. Training is of the
reference model, as `benchmarks.reference.train` trains it but with one optimiser; all see the same
batches. Its amortised step is the mean of all but the first, over which staggered refreshes are
spread evenly, and a T-th of what the first takes longer, where all bases are found; `--steps` below
T then counts each refresh once. galore-torch refreshes by `torch.linalg.svd` of the whole gradient,
so that is what is timed; energy is the share of the gradient's square norm that the basis holds.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import json
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

import corank
from benchmarks.board.measure import environment
from benchmarks.board.store import Results
from benchmarks.reference import corpus
from benchmarks.reference.evaluate import encode, load_tokenizer
from benchmarks.reference.network import build_network
from benchmarks.reference.train import loss_of, stream_batches
from corank.optim.bases import subspace_iteration

RESULTS = Path(__file__).parent / "results" / "optim.json"
GALORE: Any = corank.optim.GaLore
RATE, RANK, EVERY = 2e-3, 64, 200
WIDTH = 2048


def seconds_of(run: Callable[[], Any]) -> float:
    """Processor seconds of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def measure_training(steps: int) -> dict[str, Any]:
    """Whole training steps with GaLore at rank n/4, the paper's GaLore and fused AdamW."""
    torch.manual_seed(0)
    start = build_network()
    folder = Path(__file__).parent / "reference" / "model"
    tokens = encode(load_tokenizer(folder), corpus.training_text()[:4_000_000])
    batches = stream_batches(tokens, torch.Generator().manual_seed(0))
    makers: dict[str, Callable[[Any], Optimizer]] = {
        "AdamW": lambda m: AdamW(m.parameters(), RATE, fused=True),
        "GaLore": lambda m: GALORE(m, RATE, rank=RANK, every=EVERY),
        "GaLore by SVD": lambda m: GALORE(
            m, RATE, rank=RANK, every=EVERY, basis="svd", carry="keep", stagger=False
        ),
    }
    models = {name: copy.deepcopy(start) for name in makers}
    optimizers = {name: make(models[name]) for name, make in makers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    losses: dict[str, list[float]] = {name: [] for name in makers}

    def step(name: str, windows: Tensor) -> None:
        loss = loss_of(models[name], windows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(models[name].parameters(), 1.0)
        optimizers[name].step()
        optimizers[name].zero_grad()
        losses[name].append(loss.item())

    loss_of(start, next(batches)).backward()  # what only the first pass of all pays for
    for turn in range(steps):
        windows = next(batches)
        order = list(makers) if turn % 2 else list(makers)[::-1]
        for name in order:
            seconds[name].append(seconds_of(partial(step, name, windows)))
    later = {n: mean(s[1:]) for n, s in seconds.items()}
    shared = {n: later[n] + (s[0] - later[n]) / EVERY for n, s in seconds.items()}
    return {
        "key": f"training, rank {RANK} of 256, T = {EVERY}",
        "steps": steps,
        "amortised_seconds": shared,
        "median_seconds": {n: median(s) for n, s in seconds.items()},
        "amortised_over_adamw": {n: s / shared["AdamW"] for n, s in shared.items()},
        "longest_over_median": {n: max(s) / median(s) for n, s in seconds.items()},
        "last_losses": {n: mean(values[-20:]) for n, values in losses.items()},
        "state_bytes": {
            n: sum(t.nbytes for s in o.state.values() for t in s.values() if isinstance(t, Tensor))
            for n, o in optimizers.items()
        },
    }


def measure_refresh(rank: int, rounds: int) -> dict[str, Any]:
    """A basis of a 2048 x 2048 gradient that has moved on a little since the last refresh."""
    g = torch.Generator().manual_seed(0)
    left, right = (torch.randn(WIDTH, WIDTH, generator=g) for _ in range(2))
    decay = torch.arange(1, WIDTH + 1) ** -0.5
    before = (left * decay) @ right
    left = 0.9 * left + 0.44 * torch.randn(WIDTH, WIDTH, generator=g)
    now = (left * decay) @ right
    old = subspace_iteration(before, None, rank, g)
    ways: dict[str, Callable[[], Tensor]] = {
        "svd": lambda: torch.linalg.svd(now, full_matrices=False).U[:, :rank],
        "first": lambda: subspace_iteration(now, None, rank, g),
        "later": lambda: subspace_iteration(now, old, rank, g),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    energy = {}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.process_time()
            found = way()
            seconds[name].append(time.process_time() - start)
            energy[name] = float((found.T @ now).square().sum() / now.square().sum())
    taken = {n: median(s) for n, s in seconds.items()}
    return {
        "key": f"refresh at {WIDTH} x {WIDTH}, rank {rank}",
        "seconds": taken,
        "svd_over": {n: taken["svd"] / taken[n] for n in ("first", "later")},
        "energy": energy,
    }


def measure_steps(rounds: int) -> dict[str, Any]:
    """Only the optimiser's step on the reference model's parameters, each class's defaults."""
    kinds: dict[str, Any] = {
        name: kind
        for name, kind in inspect.getmembers(corank.optim, inspect.isclass)
        if issubclass(kind, Optimizer) and not inspect.isabstract(kind)
    }
    torch.manual_seed(0)
    start = build_network()
    for p in start.parameters():
        p.grad = torch.randn_like(p)
    optimizers: dict[str, Optimizer] = {"AdamW": AdamW(_twin(start).parameters(), fused=True)}
    for name, kind in kinds.items():
        options = {"rank": RANK} if "rank" in inspect.signature(kind).parameters else {}
        optimizers[name] = kind(_twin(start), 1e-4, **options)
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for turn in range(rounds + 1):
        for name, optimizer in optimizers.items():
            spent = seconds_of(optimizer.step)
            if turn:
                seconds[name].append(spent)
    taken = {n: median(s) for n, s in seconds.items()}
    return {
        "key": "optimiser's step alone",
        "milliseconds": {n: 1e3 * s for n, s in taken.items()},
        "over_adamw": {n: s / taken["AdamW"] for n, s in taken.items()},
        "longest_over_median": {n: max(s) / median(s) for n, s in seconds.items()},
    }


def _twin(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of the model with its gradients."""
    twin = copy.deepcopy(model)
    for p, q in zip(twin.parameters(), model.parameters(), strict=True):
        p.grad = q.grad
    return twin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a regular expression that names must match")
    parser.add_argument("--steps", type=int, default=100, help="of training")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tasks: dict[str, Callable[[], dict[str, Any]]] = {
        "steps": lambda: measure_steps(options.rounds),
        "refresh-quarter": lambda: measure_refresh(WIDTH // 4, max(3, options.rounds // 3)),
        "refresh-small": lambda: measure_refresh(128, max(3, options.rounds // 3)),
        "training": lambda: measure_training(options.steps),
    }
    results = Results(options.out)
    results.set("environment", environment())
    for name, task in tasks.items():
        if re.search(options.only, name):
            row = task()
            results.add("optim", row)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
