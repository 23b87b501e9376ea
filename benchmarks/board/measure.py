"""Making one row of the board."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import corank
from benchmarks.board.literal import compress_literally
from benchmarks.board.rows import LITERAL, Row
from benchmarks.board.tasks import Task
from corank.calibration import collect, load_statistics, save_statistics
from corank.models import find_sites
from corank.registry import METHODS, Healing
from corank.report.speed import count_bytes, measure_speed

#: What is gathered together, in one pass each, when a method first needs one of them.
PASSES: dict[str, frozenset[str]] = {
    "inputs": frozenset({"gram", "mean", "abs_mean", "square_mean"}),
    "outputs": frozenset({"output_gram"}),
    "fisher": frozenset({"fisher"}),
}
#: Sensitivity runs the model once for each site: on one in so many batches.
SENSITIVITY_STRIDE = 12
#: Healing may take two minutes on two cores: this many seconds of processor time.
HEALING_SECONDS = 240.0
#: Chosen for MiniLM on tuning text (what was tried stands in the results), and taken over.
HEALING: dict[str, dict[str, float]] = {
    "MiniLM": {"learning_rate": 6e-4, "features": 1.0, "output": 1.0},
    "reference LM": {"learning_rate": 6e-4, "features": 1.0, "output": 1.0},
}


class Collected:
    """The statistics of a model, gathered once for each seed and pass, into files of a folder."""

    def __init__(self, task: Task, folder: Path) -> None:
        self.task, self.folder = task, folder
        folder.mkdir(parents=True, exist_ok=True)

    def file(self, seed: int, needs: frozenset[str]) -> Path:
        """A file with everything of the passes that these needs take."""
        names = [name for name, gives in PASSES.items() if gives & needs]
        path = self._path(seed, "-".join(names))
        if not path.exists():
            model = self.task.load()
            sites = find_sites(model, self.task.targets, seed)
            for name in names:
                part = self._path(seed, name)
                if part.exists():
                    load_statistics(model, sites, part)
                    continue
                start = time.process_time()
                collect(model, sites, PASSES[name], self.task.calibration(seed))
                part.with_suffix(".seconds").write_text(str(time.process_time() - start))
                fresh = find_sites(model, self.task.targets, seed)
                for site, old in zip(fresh, sites, strict=True):
                    kept = PASSES[name] | {"tokens"}
                    site.stats = {k: v for k, v in old.stats.items() if k in kept}
                save_statistics(model, fresh, part)
            save_statistics(model, sites, path)
        return path

    def cost(self, seed: int, needs: frozenset[str]) -> float:
        """CPU seconds of the passes that these needs take."""
        self.file(seed, needs)
        times = [
            self._path(seed, n).with_suffix(".seconds") for n, g in PASSES.items() if g & needs
        ]
        return sum(float(path.read_text()) for path in times)

    def _path(self, seed: int, name: str) -> Path:
        return self.folder / f"{self.task.name.replace(' ', '-')}-{seed}-{name}.safetensors"


@dataclass(frozen=True)
class Made:
    """A compressed model: what its report says, and the processor seconds it took."""

    row: Row
    model: nn.Module
    totals: Mapping[str, Any]
    seconds: Mapping[str, float]


def make(task: Task, row: Row, statistics: Collected) -> Made:
    """Compress a fresh copy of the task's model, not healed yet."""
    model, needs, total = task.load(), frozenset({"gram"}), 0
    if row.method != LITERAL:
        needs = METHODS[row.method].recipe({}).needs
    calibration = statistics.cost(row.seed, needs) if needs else 0.0
    start = time.process_time()
    if row.method == LITERAL:
        sites = find_sites(model, task.targets, row.seed)
        load_statistics(model, sites, statistics.file(row.seed, needs), needs)
        total, start = sum(site.numel for site in sites), time.process_time()
        assert row.keep is not None
        stored = compress_literally(model, sites, row.keep)
        totals: dict[str, Any] = {"keep": stored / total, "sites": len(sites)}
    else:
        totals = _compress(model, task, row, statistics)
    spent = {"calibration": calibration, "factorisation": time.process_time() - start}
    return Made(row, model, totals, spent)


def measure(
    task: Task, row: Row, statistics: Collected, seconds: float, last: Made | None = None
) -> tuple[dict[str, Any], Made]:
    """The row's figures, and the model before healing; times are seconds of the processor.

    seconds: what healing may take. last: the row made before; healing starts from its model where
    that is the same row without healing.
    """
    unhealed = replace(row, healed=False)
    made = last if last is not None and last.row == unhealed else make(task, unhealed, statistics)
    model, spent, extra = copy.deepcopy(made.model), {**made.seconds, "healing": 0.0}, {}
    own = None if row.method == LITERAL else METHODS[row.method].recipe({}).heal
    if row.healed or own:
        settings = HEALING[task.name] if own is None else _settings(own, task)
        extra["healing"] = heal(model, task, row.seed, seconds, settings)
        spent["healing"] = extra["healing"]["seconds"]
    return {
        "key": row.key, "method": row.method, "keep": row.keep, "allocate": row.allocate,
        "seed": row.seed, "healed": row.healed, "reached": made.totals["keep"],
        "sites": made.totals["sites"], "model_bytes": count_bytes(model),
        "dense_bytes": count_bytes(task.load()), "cpu_seconds": spent,
        "measures": task.evaluate(model), **extra,
    }, made  # fmt: skip


def _compress(model: nn.Module, task: Task, row: Row, statistics: Collected) -> dict[str, Any]:
    own = METHODS[row.method].recipe({})
    chosen: dict[str, Any] = {} if row.keep is None else {"allocate": row.allocate}
    if own.needs:
        chosen["statistics"] = statistics.file(row.seed, own.needs)
    if own.cascade or row.allocate == "block_influence":
        chosen["data"] = task.calibration(row.seed)
    elif row.allocate == "sensitivity":
        chosen["data"] = task.calibration(row.seed)[::SENSITIVITY_STRIDE]
    report = corank.compress(
        model, row.method, keep=row.keep, targets=task.targets, seed=row.seed, heal_minutes=0,
        **chosen,
    )  # fmt: skip
    return dict(report.totals)


def _settings(own: Healing, task: Task) -> dict[str, float]:
    """A method's own healing, at the learning rate chosen for the model."""
    return {
        "learning_rate": HEALING[task.name]["learning_rate"], "features": own.distillation,
        "output": own.output, "perturbation": own.perturbation, "epsilon": own.epsilon,
    }  # fmt: skip


def heal(
    model: nn.Module, task: Task, seed: int, seconds: float, settings: Mapping[str, float]
) -> dict[str, Any]:
    """Heal for so many seconds of the processor, the original's passes among them."""
    original, data = task.load(), task.healing(seed)
    healed = corank.heal(
        model, original, data, minutes=seconds / 60, seed=seed, clock=time.process_time, **settings
    )
    last = healed.losses[-max(1, healed.steps // 10) :]
    return {
        "steps": healed.steps, "seconds": healed.seconds,
        "first loss": healed.losses[0], "last losses": sum(last) / len(last), **settings,
    }  # fmt: skip


def measure_speeds(task: Task, keep: float, statistics: Collected) -> dict[str, Any]:
    """How fast the model with uniform ranks runs beside the dense one, in interleaved rounds."""
    model, dense = task.load(), task.load()
    _compress(model, task, Row("svd_llm", keep, "uniform"), statistics)
    batch = max(task.calibration(0), key=lambda b: b["input_ids"].numel())
    rows = measure_speed({"dense": dense, "compressed": model}, batch)
    tokens = list(batch["input_ids"].shape)
    return {"key": f"keep {keep}", "keep": keep, "batch": tokens, "ratio": rows[1]["relative"]}


def environment() -> dict[str, Any]:
    """Versions and the machine, as far as they bear on results."""
    import platform

    import transformers

    return {
        "corank": corank.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "dtype": "float32",
    }
