"""One training run, and the row that it makes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

import corank
from benchmarks.training.rows import Row
from benchmarks.tuning.measure import saved_bytes
from benchmarks.tuning.tasks import Task
from corank.training import build_optimizer

WARMUP = 0.1
POINTS = 5


def prepare(row: Row, task: Task, lr: float, seed: int) -> tuple[nn.Module, Optimizer]:
    """The model with what trains in place, and its optimiser, controlled where a method is."""
    model, parameters = task.load(seed).train(), dict(row.parameters)
    if row.kind == "optimizer":
        return model, build_optimizer(model, row.method, lr, options=parameters)
    kept = [p for name, p in model.named_parameters() if "layers" not in name or "norm" in name]
    put: Callable[..., Any] = corank.adapt if row.kind == "adapt" else corank.factorize
    put(model, row.method, targets=task.targets, seed=seed, **parameters)
    if row.kind == "adapt":  # embeddings and norms train in full, as in ReLoRA's setting
        for p in kept:
            p.requires_grad_(True)
    control = corank.controller(model, total_steps=task.steps, seed=seed)
    optimizer = torch.optim.AdamW(control.parameter_groups(lr), weight_decay=0.0)
    control.attach(optimizer)
    return model, optimizer


def train(row: Row, task: Task, lr: float, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """The model after its steps, and what they took. The rate rises, then falls linearly.

    Raises FloatingPointError where the loss stops being finite.
    """
    torch.manual_seed(seed)
    model, optimizer = prepare(row, task, lr, seed)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / (WARMUP * task.steps), 1 - t / task.steps)
    )
    took, losses = [], []
    for batch in task.batches(seed):
        began = time.process_time()
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        took.append(time.process_time() - began)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss of step {len(losses)} is {losses[-1]}")
    part = task.steps // POINTS
    curve = [
        (sum(took[: (i + 1) * part]), sum(losses[i * part : (i + 1) * part]) / part)
        for i in range(POINTS)
    ]
    ordered = sorted(took)
    steps = {"step_ms": 1e3 * ordered[len(took) // 2], "slowest_ms": 1e3 * ordered[-1]}
    return model, {"curve": curve, "bytes": count_bytes(model, optimizer, task)} | steps


def measure(row: Row, task: Task, lr: float, seed: int) -> dict[str, Any]:
    """A row: what was reached on evaluation data, the curve of the loss, times and bytes."""
    try:
        model, found = train(row, task, lr, seed)
    except FloatingPointError as failure:
        return {"diverged": str(failure)}
    return {"measures": task.evaluate(model)} | found


def tune(row: Row, task: Task, lr: float, seed: int) -> float:
    """What that rate reaches on tuning data; NaN where it diverges."""
    try:
        return task.tune(train(row, task, lr, seed)[0])
    except FloatingPointError:
        return math.nan


def count_bytes(model: nn.Module, optimizer: Optimizer, task: Task) -> dict[str, int]:
    """Of weights, gradients, the optimiser's state, and what a step keeps for its backward."""
    held = {id(t): t for t in (*model.parameters(), *model.buffers())}
    state = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return {
        "weights": sum(t.nbytes for t in held.values()),
        "gradients": sum(t.nbytes for t in gradients),
        "state": sum(map(stored_bytes, state)),
        "activations": saved_bytes(task, model),
    }


def stored_bytes(tensor: torch.Tensor) -> int:
    """Of what a tensor holds: of a quantised one, its codes and scales."""
    if not is_traceable_wrapper_subclass(tensor):
        return tensor.nbytes
    names, _ = tensor.__tensor_flatten__()
    return sum(stored_bytes(getattr(tensor, name)) for name in names)
