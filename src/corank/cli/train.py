"""`corank train`: fine-tune a folder's model on text with an adapter."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import options
from .adapt import parameters, reading
from .console import progress, show
from .folders import check_out, open_model, require_tokenizer


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser("train", help="fine-tune a model on text with an adapter")
    options.add_model(parser)
    parser.add_argument("--adapt", required=True, metavar="KEY", dest="method",
                        help="the adapter's method: see `corank adapt --list`")  # fmt: skip
    parser.add_argument("--rank", type=int, metavar="R", help="of every target")
    options.add_targets(parser)
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="its parameters")
    options.add_output(parser)
    parser.add_argument("--format", choices=("corank", "peft"), default="corank",
                        help="of the adapter in OUT")  # fmt: skip
    options.add_data(parser, "or .jsonl, to train on")
    run_ = parser.add_argument_group("training")
    run_.add_argument("--tuning", metavar="PATH", type=Path,
                      help="text to tune on (default: a tenth of the data)")  # fmt: skip
    run_.add_argument("--steps", type=int, metavar="N", help="optimiser steps")
    run_.add_argument("--epochs", type=float, default=1.0, metavar="E", help="where no --steps")
    run_.add_argument("--accumulate", type=int, default=1, metavar="N", help="batches a step")
    run_.add_argument("--lr", type=float, default=2e-4, help="learning rate (default: 2e-4)")
    run_.add_argument("--weight-decay", type=float, default=0.0)
    run_.add_argument("--evaluate-every", type=int, metavar="N", help="default: ten times a run")
    run_.add_argument("--patience", type=int, metavar="N",
                      help="stop after so many evaluations without a better loss")  # fmt: skip
    run_.add_argument("--precision", choices=("bf16", "fp16"), help="autocast to it")
    run_.add_argument("--checkpointing", action="store_true", help="recompute activations")
    run_.add_argument("--resume", action="store_true", help="go on from OUT's last checkpoint")
    run_.add_argument("--seed", type=int, default=0, metavar="N")
    options.add_report(run_)
    options.add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Adapt, train, save the adapter, report."""
    options.check_report(arguments.report)
    if arguments.data is None:
        raise ValueError("say what to train on: --data PATH")
    from ..adapters import controller
    from ..io import save_adapter
    from ..training import read_examples, split_examples, train
    from ..verbs import adapt

    out = check_out(arguments.out, arguments.force or arguments.resume)
    model, tokenizer = open_model(arguments.folder, arguments.dtype)
    texts = [p for p in (arguments.data, arguments.tuning) if p is not None]
    require_tokenizer(tokenizer, arguments.folder, texts)
    examples = read_examples(arguments.data, tokenizer, arguments.sequence_length)
    if arguments.tuning is None:
        examples, tuning = split_examples(examples, 0.1)
    else:
        tuning = read_examples(arguments.tuning, tokenizer, arguments.sequence_length)
    settings = parameters(arguments)
    with progress() as tell:
        tell("starting", 0.0)
        needed = reading(arguments, tokenizer) if _needs_data(arguments.method, settings) else {}
        report = adapt(model, arguments.method, **settings, **needed)
        model.train()
        made = train(
            model, examples, tuning, out / "checkpoints",
            controller=controller(model, seed=arguments.seed), steps=arguments.steps,
            epochs=arguments.epochs, batch_size=arguments.batch_size,
            accumulate=arguments.accumulate, learning_rate=arguments.lr,
            weight_decay=arguments.weight_decay, evaluate_every=arguments.evaluate_every,
            patience=arguments.patience, resume=arguments.resume, seed=arguments.seed,
            precision=arguments.precision, checkpointing=arguments.checkpointing,
            settings=_settings(arguments), progress=tell,
        )  # fmt: skip
        tell("saving", 0.0)
        model.eval()
        save_adapter(model, out / "adapter", format=arguments.format)
    report.verb = "train"
    report.sections["training"] = made.to_json()
    report.seconds["training"] = made.seconds
    report.notes += [*examples.notes, *tuning.notes]
    show(report, arguments.json, arguments.report)
    return 0


def _needs_data(method: str, settings: dict[str, Any]) -> bool:
    from ..registry import find_method

    own = {k: v for k, v in settings.items() if k not in ("targets", "seed")}
    recipe = find_method(method, "adapt").recipe(own)
    return bool(recipe.rewrite.needs | recipe.needs)


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a resumed run must share with the one that began."""
    names = ("method", "rank", "targets", "set", "data", "tuning", "sequence_length", "batch_size",
             "steps", "epochs", "accumulate", "lr", "weight_decay", "patience", "seed",
             "precision", "dtype")  # fmt: skip
    return {name: getattr(arguments, name) for name in names}
