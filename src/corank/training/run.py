"""One training run on transformers' Trainer, with what the adapters do while they train."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..adapters import Controller
from ..errors import DataError, FormatError
from .examples import IGNORED, Examples

Tell = Callable[[str, float], None]
SETTINGS = "corank_settings.json"


@dataclass
class Training:
    """What a run did: losses on the tuning rows before and after, per step, and the time."""

    before: float
    after: float
    steps: int
    seconds: float
    losses: list[tuple[int, float]] = field(default_factory=list)  #: (step, training loss)
    tuning: list[tuple[int, float]] = field(default_factory=list)  #: (step, loss on tuning rows)
    stopped_early: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, perplexities beside the losses."""
        return vars(self) | {
            "perplexity_before": math.exp(min(self.before, 700.0)),
            "perplexity_after": math.exp(min(self.after, 700.0)),
        }


def train(
    model: nn.Module,
    examples: Examples,
    tuning: Examples,
    folder: str | os.PathLike[str],
    *,
    controller: Controller | None = None,
    steps: int | None = None,
    epochs: float = 1.0,
    batch_size: int = 8,
    accumulate: int = 1,
    learning_rate: float = 2e-4,
    weight_decay: float = 0.0,
    warmup: float = 0.03,
    evaluate_every: int | None = None,
    patience: int | None = None,
    resume: bool = False,
    seed: int = 0,
    precision: str | None = None,
    checkpointing: bool = False,
    settings: dict[str, Any] | None = None,
    progress: Tell | None = None,
) -> Training:
    """Train what requires grad in `model`, in place, with AdamW and a linear schedule.

    folder: for checkpoints; one is written at every evaluation, and `resume` goes on from the
        last, exactly as if nothing had happened. `settings` are kept there, and a run that
        resumes with others is refused.
    evaluate_every: in steps (default: a tenth of the run). patience: stop after so many
        evaluations without a better loss on the tuning rows, and go back to the best.
    precision: "bf16" or "fp16" for autocast. checkpointing: recompute activations in backward.

    Raises DataError for nothing to train, FormatError for a resume that does not fit.
    """
    from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainingArguments

    if not any(p.requires_grad for p in model.parameters()):
        raise DataError("nothing in the model trains: adapt it first, or unfreeze it")
    out = Path(folder)
    last = _last_whole(out)
    if resume and last is None:
        raise FormatError(f"{out} holds no checkpoint to resume from")
    _check_settings(out, settings or {}, resume)
    per_epoch = math.ceil(len(examples) / (batch_size * accumulate))
    total = steps if steps is not None else max(1, math.ceil(per_epoch * epochs))
    every = evaluate_every or max(1, total // 10)
    arguments = TrainingArguments(
        str(out), max_steps=total, per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size, gradient_accumulation_steps=accumulate,
        learning_rate=learning_rate, weight_decay=weight_decay,
        warmup_steps=math.ceil(warmup * total), eval_strategy="steps", eval_steps=every,
        save_steps=every, save_total_limit=2, logging_steps=every, seed=seed, report_to=[],
        disable_tqdm=True, load_best_model_at_end=patience is not None,
        metric_for_best_model="eval_loss", greater_is_better=False, bf16=precision == "bf16",
        fp16=precision == "fp16", gradient_checkpointing=checkpointing,
        use_cpu=next(model.parameters()).device.type == "cpu", remove_unused_columns=False,
    )  # fmt: skip
    callbacks: list[Any] = [] if controller is None else [controller.callback()]
    if patience is not None:
        callbacks.append(EarlyStoppingCallback(patience))
    callbacks.append(_teller(progress or (lambda stage, fraction: None)))
    optimizer = None
    if controller is not None:
        optimizer = torch.optim.AdamW(controller.parameter_groups(learning_rate, weight_decay))
    trainer = Trainer(
        model, arguments, train_dataset=examples, eval_dataset=tuning, callbacks=callbacks,
        data_collator=collate, optimizers=(optimizer, None),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    before = float(trainer.evaluate()["eval_loss"])
    result = trainer.train(resume_from_checkpoint=str(last) if resume else None)
    after = float(trainer.evaluate()["eval_loss"])
    history = trainer.state.log_history
    tuned = {e["step"]: e["eval_loss"] for e in history if "eval_loss" in e and e["step"]}
    return Training(
        before, after, trainer.state.global_step, float(result.metrics["train_runtime"]),
        losses=[(e["step"], e["loss"]) for e in history if "loss" in e],
        tuning=[(0, before), *sorted(tuned.items())],
        stopped_early=trainer.state.global_step < total,
    )  # fmt: skip


def collate(rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Rows padded on the right to the longest; what pads is neither seen nor learnt."""
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(key: str, value: int) -> torch.Tensor:
        return torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in rows])

    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    return {
        "input_ids": padded("input_ids", 0),
        "labels": padded("labels", IGNORED),
        "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
    }


def _last_whole(folder: Path) -> Path | None:
    """The last checkpoint that was written to its end: a kill can come while one is."""
    found = [p for p in folder.glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit()]
    for checkpoint in sorted(found, key=lambda p: -int(p.name.rpartition("-")[2])):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return checkpoint
    return None


def _check_settings(folder: Path, settings: dict[str, Any], resume: bool) -> None:
    file = folder / SETTINGS
    text = json.dumps(settings, sort_keys=True, indent=1, default=str) + "\n"
    if resume and file.is_file():
        kept = json.loads(file.read_text(encoding="utf-8"))
        now = json.loads(text)
        changed = sorted(k for k in {*kept, *now} if kept.get(k) != now.get(k))
        if changed:
            told = ", ".join(f"{k} was {kept.get(k)!r} and is {now.get(k)!r}" for k in changed)
            raise FormatError(f"{folder} was begun with other settings: {told}")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)


def _teller(progress: Tell) -> Any:
    from transformers import TrainerCallback

    class Teller(TrainerCallback):
        """Say how far the run is."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            progress("training", state.global_step / max(1, state.max_steps))

    return Teller()
