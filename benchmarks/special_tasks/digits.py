"""A convolutional network that reads digits."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn

from benchmarks.special_tasks.rows import steps
from benchmarks.special_tasks.task import Special
from benchmarks.tuning.tasks import Digits
from corank.verbs.candidates import BITS

#: The first and the last layer are small and cannot do with the share of the others.
GREEDY = {"allocate": "greedy"}


@final
class _Network(Digits):
    """Three convolutions, and a linear layer over the means of their channels."""

    def _network(self, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
                nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
                nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
            )  # fmt: skip


@final
class Convolutions(Special):
    """Scikit-learn's digits, upright."""

    name, quality, higher = "digits", "accuracy", True
    shares = (0.5, 0.25, 0.12)
    compositions = (
        steps("svd"),
        *(steps({key: GREEDY}) for key in ("svd", "svd_llm", "fwsvd", "kfac_svd")),
        steps({"round_to_nearest": {"bits": BITS}}), steps({"gptq": {"bits": BITS}}),
        steps({"svd_llm": GREEDY}, {"gptq": {"bits": 8}}), steps("mixed_td"), steps("corank"),
    )  # fmt: skip
    targets = "all"

    def load(self) -> nn.Module:
        return copy.deepcopy(self._trained).to(torch.bfloat16)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return self._task.loss(model, batch)

    def data(self, labelled: bool) -> list[Any]:
        batches = [(x.to(torch.bfloat16), y) for x, y in self._task.batches(seed=1)]
        return batches if labelled else [x for x, _ in batches]

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {self.quality: self._task.evaluate(model)[self._task.forgetting]}

    @cached_property
    def _task(self) -> _Network:
        task = _Network()
        task.steps, task.pretraining = (2, 10) if self.small else (16, 300)
        return task

    @cached_property
    def _trained(self) -> nn.Module:
        return self._task.load()
