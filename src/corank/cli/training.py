"""What `corank train` does, in order: model, tokenizer, text, what trains, run, saving."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from torch import nn

from . import options
from .adapt import parameters, reading
from .console import Progress, progress, show
from .folders import check_out, open_tokenizer, require_tokenizer
from .starting import check_length, open_language_model, start_language_model


def train_and_save(arguments: argparse.Namespace) -> int:
    """Train as the command line says; only the first of several processes writes and prints."""
    from ..training import leave

    _train_and_save(arguments)
    leave()
    return 0


def _train_and_save(arguments: argparse.Namespace) -> None:
    from ..training import (
        Masked,
        find_optimizer,
        gather,
        objective_of,
        read_config,
        read_examples,
        read_split,
    )

    first, processes = int(os.environ.get("RANK", "0")) == 0, int(os.environ.get("WORLD_SIZE", "1"))
    if arguments.fsdp and processes == 1:
        raise ValueError("--fsdp shards over processes: start it by torchrun --nproc-per-node 2")
    out = check_out(arguments.out, arguments.force or arguments.resume or not first)
    own, of_optimizer = split_settings(arguments)
    find_optimizer(arguments.optimizer, of_optimizer)
    config = read_config(arguments.folder)
    objective = arguments.objective or objective_of(config)
    check_length(config, arguments.sequence_length)
    with progress() as tell:
        tell("starting", 0.0)
        model, tokenizer = _model(arguments, config, objective, out, first)
        texts = [p for p in (arguments.data, arguments.tuning) if p is not None]
        require_tokenizer(tokenizer, arguments.folder, texts)
        how: dict[str, Any] = {"specials": objective == "masked", "tell": tell}
        length = arguments.sequence_length
        if arguments.tuning is None:
            examples, tuning = read_split(
                arguments.data, tokenizer, length, arguments.held_out, **how
            )
        else:
            examples = read_examples(arguments.data, tokenizer, length, **how)
            tuning = read_examples(arguments.tuning, tokenizer, length, **how)
        notes = [*examples.notes, *tuning.notes]
        if objective == "masked":
            seen: Any = Masked(examples, tokenizer, arguments.seed)
            held: Any = Masked(tuning, tokenizer, arguments.seed)
        else:
            seen, held = examples, tuning
        report = _prepare(model, tokenizer, arguments, own)
        made = _run(model, seen, held, out, arguments, of_optimizer, tell)
        tell("saving", 0.0)
        if arguments.fsdp:
            gather(model)
        if first:
            _save(model, tokenizer, out, arguments)
    report.verb = "train"
    report.sections["training"] = made.to_json()
    report.seconds["training"] = made.seconds
    report.notes += notes
    if made.skipped:
        report.notes.append(f"{made.skipped} steps were skipped: a gradient was not finite")
    if first:
        show(report, arguments.json, arguments.report)


def split_settings(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """What --set says of the adapter or factorisation, and of the optimiser.

    Raises ValueError for the former where nothing is adapted or factorised.
    """
    of_optimizer = [p for p in arguments.set if p.startswith("optimizer.")]
    rest = [p for p in arguments.set if p not in of_optimizer]
    if arguments.adapt is None and arguments.factorize is None:
        if rest or arguments.rank is not None:
            what = "--rank" if arguments.rank is not None else f"--set {rest[0]}"
            raise ValueError(
                f"{what} is of an adapter or factorisation, and none was asked for: of the "
                "optimiser write --set optimizer.NAME=VALUE"
            )
        own: dict[str, Any] = {}
    else:
        own = parameters(argparse.Namespace(**vars(arguments) | {"set": rest}))
    named = options.parse_parameters([p.removeprefix("optimizer.") for p in of_optimizer])
    return own, named


def _model(
    arguments: argparse.Namespace, config: Any, objective: Any, out: Path, first: bool
) -> tuple[nn.Module, Any]:
    """The model, ready to train on its device, and its tokenizer or None."""
    import torch

    folder = arguments.folder
    source = arguments.tokenizer or (folder if folder.is_dir() else folder.parent)
    tokenizer = open_tokenizer(source)
    if arguments.tokenizer is not None and tokenizer is None:
        raise ValueError(f"--tokenizer {source} holds no tokenizer")
    if folder.is_dir() and any(folder.glob("*.safetensors")):
        dtype = arguments.dtype or (None if arguments.adapt else "float32")
        model = open_language_model(folder, dtype, tokenizer)
    else:
        model, tokenizer = start_language_model(arguments, config, objective, tokenizer, out, first)
    if torch.cuda.is_available() and not arguments.cpu:
        model = model.to(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    return model, tokenizer


def _prepare(model: nn.Module, tokenizer: Any, arguments: argparse.Namespace, own: Any) -> Any:
    """Put in place what trains; a report of it."""
    from ..report import Report, versions
    from ..verbs import adapt, factorize

    if arguments.adapt is not None:
        needed = reading(arguments, tokenizer) if _needs_data(arguments.adapt, own) else {}
        return adapt(model, arguments.adapt, **own, **needed)
    if arguments.factorize is not None:
        return factorize(model, arguments.factorize, **own)
    model.requires_grad_(True)
    told = {name: getattr(arguments, name) for name in ("lr", "batch_size", "seed")}
    return Report("train", arguments.optimizer, parameters=told, versions=versions())


def _run(
    model: nn.Module, examples: Any, tuning: Any, out: Path, arguments: argparse.Namespace,
    of_optimizer: dict[str, Any], tell: Progress,
) -> Any:  # fmt: skip
    from ..adapters import controller
    from ..training import build_optimizer, train

    control = None
    if arguments.adapt is not None or arguments.factorize is not None:
        control = controller(model, seed=arguments.seed)

    def optimizer() -> Any:
        groups = control and control.parameter_groups(arguments.lr, arguments.weight_decay)
        return build_optimizer(
            model, arguments.optimizer, arguments.lr, arguments.weight_decay, of_optimizer, groups
        )

    model.train()
    made = train(
        model, examples, tuning, out / "checkpoints", controller=control,
        optimizer=optimizer,
        steps=arguments.steps, epochs=arguments.epochs, batch_size=arguments.batch_size,
        accumulate=arguments.accumulate, learning_rate=arguments.lr,
        weight_decay=arguments.weight_decay, schedule=arguments.schedule, warmup=arguments.warmup,
        evaluate_every=arguments.evaluate_every, patience=arguments.patience,
        resume=arguments.resume, seed=arguments.seed, precision=arguments.precision,
        checkpointing=arguments.checkpointing, tensorboard=arguments.tensorboard,
        sharded=arguments.fsdp, settings=_settings(arguments), progress=tell,
    )  # fmt: skip
    model.eval()
    return made


def _save(model: nn.Module, tokenizer: Any, out: Path, arguments: argparse.Namespace) -> None:
    from ..io import save, save_adapter

    if arguments.adapt is not None:
        save_adapter(model, out / "adapter", format=arguments.format)
    else:
        save(model, out / "model", tokenizer)


def _needs_data(method: str, settings: dict[str, Any]) -> bool:
    from ..registry import find_method

    own = {k: v for k, v in settings.items() if k not in ("targets", "seed")}
    recipe = find_method(method, "adapt").recipe(own)
    return bool(recipe.rewrite.needs | recipe.needs)


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a resumed run must share with the one that began."""
    names = ("folder", "adapt", "factorize", "optimizer", "rank", "targets", "set", "objective",
             "tokenizer", "data", "tuning", "held_out", "sequence_length", "batch_size", "steps",
             "epochs", "accumulate", "lr", "weight_decay", "schedule", "warmup", "patience", "seed",
             "precision", "dtype", "fsdp")  # fmt: skip
    return {name: getattr(arguments, name) for name in names}
