"""One setting: its learning rate chosen on tuning rows, then its runs, one per seed."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import corank
import corank.errors
import corank.registry
from benchmarks.board.store import Results
from benchmarks.claiming.pairs import Pairs
from benchmarks.claiming.scores import scores, tuning_loss
from benchmarks.claiming.weights import cut_ranks, mean_intruders
from benchmarks.tuning.measure import FROZEN, FULL, GRADIENTS, train
from benchmarks.tuning.tasks import TASKS, Digits, Task

GRIDS = {
    "digits": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0),
    "pairs": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0),
    "prose": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
}
SEEDS = {"digits": (0, 1, 2, 3, 4), "pairs": (0, 1, 2, 3, 4), "prose": (0, 1, 2)}
TUNING_SEED = 100


@dataclass(frozen=True)
class Setting:
    """A method with parameters on a task for so many steps.

    `rate_of`: the setting whose rate it takes, where the claim is about one rate for both.
    `looks`: what else is measured of the weights: "intruders", or "cut to N".
    """

    task: str
    method: str
    parameters: tuple[tuple[str, Any], ...] = ()
    steps: int = 50
    rate_of: Setting | None = None
    looks: str = ""

    @property
    def label(self) -> str:
        """The method with its parameters."""
        given = ", ".join(f"{name}={value}" for name, value in self.parameters)
        return f"{self.method}({given})" if given else self.method

    @property
    def key(self) -> str:
        rate = f"rate of {self.rate_of.label}" if self.rate_of else ""
        return ", ".join(part for part in (self.tuning_key, rate, self.looks) if part)

    @property
    def tuning_key(self) -> str:
        """What its rate is chosen for."""
        return f"{self.label}, {self.task}, {self.steps} steps"

    @property
    def possible(self) -> bool:
        """Whether its method is registered."""
        return self.method in (FULL, FROZEN, *corank.registry.METHODS)


@functools.cache
def make_task(name: str, steps: int, seed: int) -> Task:
    """The task with that many steps; pairs to memorise are each seed's own."""
    task = Pairs(seed) if name == "pairs" else copy.copy(_shared(name))
    task.steps = steps
    return task


@functools.cache
def _shared(name: str) -> Task:
    task = TASKS[name]
    task.load()  # what it caches is then shared by the copies
    task.evaluate(task.load())
    return task


def task_of(setting: Setting, seed: int) -> Task:
    """The setting's task for that seed."""
    own = seed if setting.task == "pairs" else 0
    return make_task(setting.task, setting.steps, own)


def prepare(task: Task, setting: Setting, seed: int) -> nn.Module:
    """The task's model with the adapter, or with everything to train, or with nothing."""
    model = task.load()
    if setting.method in (FULL, FROZEN):
        return model.requires_grad_(setting.method == FULL)
    parameters = dict(setting.parameters)
    recipe = corank.registry.find_method(setting.method, "adapt").recipe(parameters)
    needs = recipe.rewrite.needs | recipe.needs
    given: dict[str, Any] = {}
    if needs & GRADIENTS:
        given = {"data": task.batches(seed)[:16], "loss": task.loss}
    elif needs:
        rows = task.batches(seed)[:16]
        if parameters.get("mode") == "kpm" and isinstance(task, Digits):
            rows = task._batches(task._images["train"], False, 16, seed)
        given = {"data": [row[0] if isinstance(row, tuple) else row for row in rows]}
    corank.adapt(
        model.requires_grad_(False), setting.method, targets=task.targets, seed=seed, **given,
        **parameters,
    )  # fmt: skip
    return model


def tune(setting: Setting, rate: float) -> float:
    """The loss on the tuning rows after training at that rate; infinite if it diverges."""
    task = task_of(setting, TUNING_SEED)
    try:
        model = prepare(task, setting, TUNING_SEED)
        train(task, model, rate, TUNING_SEED)
        return tuning_loss(task, model)
    except corank.errors.SiteError as error:
        if "NaN or infinite" not in str(error):
            raise
        return float("inf")


def measure(setting: Setting, rate: float, seed: int) -> dict[str, Any]:
    """Prepare, train and evaluate once."""
    torch.manual_seed(seed)
    task = task_of(setting, seed)
    model = prepare(task, setting, seed)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    train(task, model, rate, seed)
    measures = scores(task, model)
    if setting.looks == "intruders":
        measures["intruders"] = mean_intruders(task.load(), model, task.targets)
    elif setting.looks:
        rank = int(setting.looks.removeprefix("cut to "))
        for best, name in ((False, "accuracy cut"), (True, "accuracy cut by SVD")):
            shorter = copy.deepcopy(model)
            cut_ranks(shorter, rank, best)
            measures[name] = scores(task, shorter)["accuracy"]
    return {"trainable": trainable, "measures": measures}


def choose_rate(setting: Setting, results: Results) -> float:
    """The rate of the grid with the lowest loss on the tuning rows; tries those not yet tried."""
    key, reached = setting.tuning_key, {}
    if results.has("rates", key):
        reached = dict(results.get("rates", key)["tuned"])
    missing = [rate for rate in GRIDS[setting.task] if rate not in reached]
    for rate in missing:
        reached[rate] = tune(setting, rate)
    best = min(reached, key=lambda rate: reached[rate])
    if missing:
        results.add("rates", {"key": key, "rate": best, "tuned": sorted(reached.items())})
    return best


def make(setting: Setting, results: Results) -> None:
    """Tune the rate and run the seeds that are not there yet, or are there at another rate."""
    untrained = setting.method == FROZEN
    rate = 0.0 if untrained else choose_rate(setting.rate_of or setting, results)
    for seed in SEEDS[setting.task][: 1 if untrained else None]:
        key = f"{setting.key}, seed {seed}"
        if not results.has("runs", key) or results.get("runs", key)["rate"] != rate:
            results.add("runs", {"key": key, "rate": rate} | measure(setting, rate, seed))
