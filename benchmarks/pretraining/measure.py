"""One pretraining run, and the row that it makes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

import corank
from benchmarks.pretraining.rows import Row
from benchmarks.pretraining.task import BATCH, LENGTH, Size, batches, loss_on, start
from corank.training import build_optimizer, kept_activations

WARMUP = 0.1


def prepare(row: Row, size: Size, lr: float, seed: int) -> tuple[nn.Module, Optimizer]:
    """The model with what trains in place, and its optimiser, controlled where a method is."""
    model, parameters = start(size, seed).train(), dict(row.parameters)
    if row.kind == "optimizer":
        return model, build_optimizer(model, row.method, lr, options=parameters)
    kept = [p for name, p in model.named_parameters() if "layers" not in name or "norm" in name]
    put: Callable[..., Any] = corank.adapt if row.kind == "adapt" else corank.factorize
    put(model, row.method, seed=seed, **parameters)
    for p in kept:  # embeddings, head and norms train in full everywhere, as in ReLoRA's setting
        p.requires_grad_(True)
    control = corank.controller(model, total_steps=size.steps, seed=seed)
    optimizer = torch.optim.AdamW(control.parameter_groups(lr))
    control.attach(optimizer)
    return model, optimizer


def run(row: Row, size: Size, lr: float, seed: int, split: str) -> dict[str, Any]:
    """Train once: losses on `split`, milliseconds a step, bytes; NaN where it diverged."""
    model, optimizer = prepare(row, size, lr, seed)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / (WARMUP * size.steps), 1 - t / size.steps)
    )
    took, curve = [], []
    every = size.steps // 5
    for step, ids in enumerate(batches(size, seed), start=1):
        began = time.process_time()
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        took.append(time.process_time() - began)
        if not math.isfinite(loss.item()):
            break
        if step % every == 0:
            curve.append((sum(took), loss_on(model, split)))
    reached = curve[-1][1] if len(took) == size.steps else math.nan
    took.sort()
    return {"loss": reached, "curve": curve, "step_ms": 1e3 * took[len(took) // 2],
            "slowest_ms": 1e3 * took[-1], "bytes": _bytes(model, optimizer)}  # fmt: skip


def _bytes(model: nn.Module, optimizer: Optimizer) -> dict[str, int]:
    held = {id(t): t for t in (*model.parameters(), *model.buffers())}
    state = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    kept, _ = kept_activations(model, torch.zeros(BATCH, LENGTH, dtype=torch.long))
    return {
        "weights": sum(t.nbytes for t in held.values()),
        "gradients": sum(p.grad.nbytes for p in model.parameters() if p.grad is not None),
        "state": sum(t.nbytes for t in state),
        "activations": kept,
    }
