"""What is measured of a trained model: on tuning rows to choose a rate, on evaluation rows after.

Always "loss" (cross-entropy per row or token) and "kept" (how well the earlier task still goes:
accuracy, or the negative loss for language); with labels also "accuracy".
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.claiming.pairs import Pairs
from benchmarks.tuning.tasks import Digits, Prose, Task


def tuning_loss(task: Task, model: nn.Module) -> float:
    """The loss on the tuning rows; a rate that diverges has an infinite one."""
    if isinstance(task, Prose):
        found = math.log(task.tune(model))
    else:
        found = _loss(model, _rows(task, "tune"))
    return found if math.isfinite(found) else math.inf


def scores(task: Task, model: nn.Module) -> dict[str, float]:
    """The measures on the evaluation rows."""
    found = task.evaluate(model)
    quality, kept = found[task.quality], found[task.forgetting]
    if isinstance(task, Prose):
        return {"loss": math.log(quality), "kept": -math.log(kept)}
    return {"loss": _loss(model, _rows(task, "evaluate")), "accuracy": quality, "kept": kept}


@torch.no_grad()
def _loss(model: nn.Module, rows: Any) -> float:
    return F.cross_entropy(model.eval()(rows[0]), rows[1]).item()


def _rows(task: Task, split: str) -> Any:
    if isinstance(task, Pairs):
        return task.pairs
    assert isinstance(task, Digits)
    x, y = task._images[split]
    return torch.rot90(x, 1, (-2, -1)), y
