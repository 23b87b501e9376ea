"""How much a leaf, or a rank, matters to the loss: smoothed over the steps of a training.

What is remembered about a leaf is kept under "<what>:<leaf's name>" with the leaf's own shape, so
that `cutting` can cut it along.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .control import Training


def follow_sensitivity(training: Training, beta1: float, beta2: float) -> None:
    """Take this step's |p * gradient| of every leaf into its moving mean and its uncertainty.

    mean = beta1 mean + (1 - beta1) I;  uncertainty = beta2 uncertainty + (1 - beta2) |I - mean|.
    """
    for name, leaf in training.leaves().items():
        if leaf.grad is None:
            continue
        now = (leaf.detach() * leaf.grad).abs()
        mean = _smooth(training, f"sensitivity:{name}", now, beta1)
        _smooth(training, f"uncertainty:{name}", (now - mean).abs(), beta2)


def sensitivity(training: Training, name: str) -> Tensor:
    """Smoothed sensitivity times uncertainty of each entry of a leaf."""
    mean: Tensor = training.memory[f"sensitivity:{name}"]
    uncertainty: Tensor = training.memory[f"uncertainty:{name}"]
    return mean * uncertainty


def triplet_scores(training: Training) -> dict[str, Tensor]:
    """(r,) for each low-rank product: s(gate_i) + mean s(a_i) + mean s(b_i); masked ones lowest."""
    scores = {}
    for name, op in training.low_ranks().items():
        score = sensitivity(training, f"{name}.gate")
        score = score + sensitivity(training, f"{name}.a").mean(1)
        score = score + sensitivity(training, f"{name}.b").mean(0)
        scores[name] = score if op.mask is None else score.masked_fill(~op.mask, -torch.inf)
    return scores


def follow_importance(training: Training, beta: float) -> None:
    """Take this step's |p * gradient| into its moving mean, which starts at its first value."""
    for name, leaf in training.leaves().items():
        if leaf.grad is not None:
            key, now = f"importance:{name}", (leaf.detach() * leaf.grad).abs()
            training.memory.setdefault(key, now)
            _smooth(training, key, now, beta)


def follow_gradients(
    training: Training, leaves: Mapping[str, nn.Parameter], interval: int,
    beta1: float, beta2: float,
) -> dict[str, Tensor]:  # fmt: skip
    """Take this step's |gradient| of the leaves into the mean of a window of `interval` steps.

    At a window's end, where alone something is returned: the entries' smoothed mean times
    uncertainty, I = beta1 I + (1 - beta1) s and U = beta2 U + (1 - beta2) |s - I|.
    """
    for name, leaf in leaves.items():
        if leaf.grad is not None:
            key, now = f"window:{name}", leaf.grad.abs() / interval
            training.memory[key] = training.memory.get(key, 0) + now
    if training.step % interval:
        return {}
    scores = {}
    for name in leaves:
        now = training.memory.pop(f"window:{name}", None)
        if now is not None:
            mean = _smooth(training, f"sensitivity:{name}", now, beta1)
            _smooth(training, f"uncertainty:{name}", (now - mean).abs(), beta2)
            scores[name] = sensitivity(training, name)
    return scores


def _smooth(training: Training, key: str, now: Tensor, beta: float) -> Tensor:
    held = training.memory.get(key)
    smooth = (torch.zeros_like(now) if held is None else held) * beta + now * (1 - beta)
    training.memory[key] = smooth
    return smooth
