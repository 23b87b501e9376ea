"""One training run on transformers' Trainer, with what the adapters do while they train."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..adapters import Controller
from ..errors import DataError, FormatError
from .batches import collate
from .checkpoints import check_settings, last_whole, writing
from .examples import Examples, Tell
from .masking import Masked, epoch_teller
from .optimizers import build_optimizer
from .result import Training
from .sharding import allow_sharding_on_cpus
from .skipping import Skipping


def train(
    model: nn.Module,
    examples: Examples | Masked,
    tuning: Examples | Masked,
    folder: str | os.PathLike[str],
    *,
    controller: Controller | None = None,
    optimizer: Callable[[], Optimizer] | None = None,
    steps: int | None = None,
    epochs: float = 1.0,
    batch_size: int = 8,
    accumulate: int = 1,
    learning_rate: float = 2e-4,
    weight_decay: float = 0.0,
    schedule: str = "linear",
    warmup: float = 0.03,
    evaluate_every: int | None = None,
    patience: int | None = None,
    resume: bool = False,
    seed: int = 0,
    precision: str | None = None,
    checkpointing: bool = False,
    tensorboard: bool = False,
    sharded: bool = False,
    settings: dict[str, Any] | None = None,
    progress: Tell | None = None,
) -> Training:
    """Train what requires grad in `model`, in place.

    folder: for checkpoints; one is written at every evaluation, and `resume` goes on from the
        last, exactly as if nothing had happened. `settings` are kept there, and a run that
        resumes with others is refused.
    optimizer: makes the optimiser, once; default: AdamW at `learning_rate` and `weight_decay`.
        Steps whose gradient is not finite are skipped and counted.
    schedule: of the learning rate, as transformers calls them: "linear", "cosine", "constant" ...
        warmup: the share of the run in which it rises.
    evaluate_every: in steps (default: a tenth of the run). patience: stop after so many
        evaluations without a better loss on the tuning rows, and go back to the best.
    precision: "bf16", or on a GPU "fp16", for autocast. checkpointing: recompute activations in
        backward. tensorboard: log to `folder`/tensorboard. sharded: weights, gradients and state
        are spread over the processes by FSDP2; otherwise each holds them all (DDP).

    Raises DataError for nothing to train, ValueError for a precision that cannot be had,
    FormatError for a resume that does not fit, OSError naming the last whole checkpoint where one
    could not be written.
    """
    from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainingArguments

    if not any(p.requires_grad for p in model.parameters()):
        raise DataError("nothing in the model trains: adapt it first, or unfreeze it")
    cpu = next(model.parameters()).device.type == "cpu"
    _require_precision(precision, cpu)
    out, processes = Path(folder), int(os.environ.get("WORLD_SIZE", "1"))
    last = last_whole(out, processes)
    if resume and last is None:
        raise FormatError(f"{out} holds no checkpoint to resume from")
    check_settings(out, settings or {}, resume)
    per_epoch = math.ceil(len(examples) / (batch_size * accumulate * processes))
    total = steps if steps is not None else max(1, math.ceil(per_epoch * epochs))
    every = evaluate_every or max(1, total // 10)
    arguments = TrainingArguments(
        str(out), max_steps=total, per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size, gradient_accumulation_steps=accumulate,
        learning_rate=learning_rate, weight_decay=weight_decay, lr_scheduler_type=schedule,
        warmup_steps=math.ceil(warmup * total), eval_strategy="steps", eval_steps=every,
        save_steps=every, save_total_limit=2, logging_steps=max(1, every // 10), seed=seed,
        report_to=_reports(out, tensorboard),
        disable_tqdm=True, load_best_model_at_end=patience is not None,
        metric_for_best_model="eval_loss", greater_is_better=False, bf16=precision == "bf16",
        fp16=precision == "fp16", **_recomputing(checkpointing),
        use_cpu=cpu, remove_unused_columns=False,
        eval_on_start=not resume,  # an evaluation before training would keep it from being wrapped
        fsdp=True if sharded else None, fsdp_config={"version": 2} if sharded else None,
        ddp_find_unused_parameters=(
            bool(controller and controller.replaces) if processes > 1 else None
        ),
    )  # fmt: skip
    if sharded:
        allow_sharding_on_cpus()
    callbacks: list[Any] = [] if controller is None else [controller.callback()]
    if isinstance(examples, Masked):
        callbacks.append(epoch_teller(examples))
    if patience is not None:
        callbacks.append(EarlyStoppingCallback(patience))
    callbacks.append(_teller(progress or (lambda stage, fraction: None)))
    skipping = Skipping()

    class Runner(Trainer):
        """A Trainer with our optimiser, that says which checkpoint is left where one fails."""

        optimizer: Optimizer | None

        def create_optimizer(self, model: Any = None) -> Optimizer:
            if self.optimizer is None:  # after sharding, which puts other leaves in place
                groups = controller and controller.parameter_groups(learning_rate, weight_decay)
                made = optimizer() if optimizer is not None else build_optimizer(
                    self.model, lr=learning_rate, weight_decay=weight_decay, groups=groups
                )  # fmt: skip
                if controller is None:  # whose own check names the weight, and the remedy
                    skipping.attach(made)
                self.optimizer = made
            return self.optimizer

        def save_model(self, *arguments: Any, **options: Any) -> None:
            if not sharded:  # of shards there is a file of its own, which is what resumes
                super().save_model(*arguments, **options)

        def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
            with writing(out, self.state.global_step):
                super()._save_checkpoint(*arguments, **options)

    trainer = Runner(
        model, arguments, train_dataset=examples, eval_dataset=tuning, callbacks=callbacks,
        data_collator=collate,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    result = trainer.train(resume_from_checkpoint=str(last) if resume else None)
    after = float(trainer.evaluate()["eval_loss"])
    history = trainer.state.log_history
    tuned = {e["step"]: float(e["eval_loss"]) for e in history if "eval_loss" in e}
    return Training(
        tuned[0], after, trainer.state.global_step, float(result.metrics["train_runtime"]),
        losses=[(e["step"], e["loss"]) for e in history if "loss" in e],
        tuning=sorted(tuned.items()),
        stopped_early=trainer.state.global_step < total, skipped=skipping.count,
    )  # fmt: skip


def _recomputing(checkpointing: bool) -> dict[str, bool]:
    """The Trainer's argument for it, which transformers 5 renames on its way."""
    from transformers import TrainingArguments

    names = ("activation_checkpointing", "gradient_checkpointing")
    known = next(name for name in names if name in TrainingArguments.__dataclass_fields__)
    return {known: True} if checkpointing else {}


def _require_precision(precision: str | None, cpu: bool) -> None:
    if precision not in (None, "bf16", "fp16"):
        raise ValueError(f"precision={precision!r} is none of bf16, fp16 and None (float32)")
    if precision == "fp16" and cpu:  # which accelerate would silently run in float32
        raise ValueError("fp16 takes a GPU: train in bf16 here")


def _reports(out: Path, tensorboard: bool) -> list[str]:
    """Where the Trainer logs to; ImportError where that is not installed."""
    if not tensorboard:
        return []
    if not any(find_spec(name) for name in ("tensorboard", "tensorboardX")):
        raise ImportError("logging to TensorBoard takes its package: pip install tensorboard")
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(out / "tensorboard")
    return ["tensorboard"]


def _teller(progress: Tell) -> Any:
    from transformers import TrainerCallback

    class Teller(TrainerCallback):
        """Say how far the run is."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            progress("training", state.global_step / max(1, state.max_steps))

    return Teller()
