"""Batch norms beside adapted weights: whose statistics they hold."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ..errors import SiteError
from .control import Control, Training

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


def batch_norms(model: nn.Module, sites: Iterable[str]) -> dict[str, BatchNorm]:
    """The batch norms that stand in one module with any of these weights, by name."""
    beside = {name.rpartition(".")[0] for name in sites}
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, BatchNorm) and path.rpartition(".")[0] in beside
    }


def fresh_batch_norm() -> Control:
    """Forget the running statistics at the first step, so that they become the new data's.

    They are gathered by the batch norms themselves, in train mode, as always (AdaBN,
    arXiv 1603.04779). Raises SiteError for one in eval mode, which would gather nothing.
    """

    def before_step(training: Training) -> None:
        if training.memory.get("batch_norm_is_fresh"):
            return
        norms = batch_norms(training.model, training.sites)
        for path, norm in norms.items():
            if not norm.training:
                raise SiteError(
                    path,
                    "the batch norm is in eval mode, so it gathers no statistics of the new data",
                    "Call model.train() before training.",
                )
        for norm in norms.values():
            norm.reset_running_stats()
        training.memory["batch_norm_is_fresh"] = True

    return Control(before_step=before_step)
