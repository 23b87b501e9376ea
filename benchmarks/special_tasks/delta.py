"""The reference model and what it became when it learned prose."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any, final

import torch
from torch import nn

from benchmarks.special_tasks.rows import Composition
from benchmarks.special_tasks.task import Special
from benchmarks.tuning.measure import FULL, prepare, train
from benchmarks.tuning.tasks import Prose

RATE = 5e-4


@final
class Pair(Special):
    """The adapters' prose task; the blocks were trained in full, the tied embedding was not."""

    name, quality, higher = "delta", "perplexity on prose", False
    shares = (1 / 8, 1 / 16)
    compositions = (
        Composition("delta_come"),
        *(Composition("ere", {"bits": bits}) for bits in (8, 4, None)),
    )  # fmt: skip
    targets = "all-linear"

    def load(self) -> nn.Module:
        return copy.deepcopy(self._tuned).to(torch.bfloat16)

    def data(self, labelled: bool) -> list[Any]:
        return [{"input_ids": rows} for rows in self._task.batches(seed=1)[:64]]

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return self._task.evaluate(model)

    def options(self) -> dict[str, Any]:
        return {"original": self._base()}

    def references(self) -> dict[str, nn.Module]:
        return {"base": self._base(), "tuned": self.load()}

    def _base(self) -> nn.Module:
        return self._task.load().to(torch.bfloat16)

    @cached_property
    def _task(self) -> Prose:
        task = Prose()
        task.steps, task.batch = (2, 2) if self.small else (300, 8)
        return task

    @cached_property
    def _tuned(self) -> nn.Module:
        model = prepare(self._task, FULL, {}, 0)
        model.get_input_embeddings().requires_grad_(False)
        train(self._task, model, RATE, 0)
        return model.requires_grad_(False)
