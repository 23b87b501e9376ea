"""`corank train`: pretrain from a configuration, or fine-tune a folder's model, on text."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import options, recipe_file


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser("train", help="pretrain or fine-tune a language model on text")
    parser.add_argument("folder", metavar="FOLDER", type=Path, nargs="?",
                        help="a transformers model's folder, or a config.json to start "
                        "from")  # fmt: skip
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"),
                        help="type of the weights (default: float32; as they are stored "
                        "under an adapter)")  # fmt: skip
    recipe_file.add(parser)
    _add_parts(parser)
    options.add_output(parser)
    options.add_data(parser, "or .jsonl, to train on")
    _add_text(parser.add_argument_group("text"))
    _add_run(parser.add_argument_group("training"))
    options.add_common(parser)
    parser.set_defaults(run=run)


def _add_parts(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what trains, and how")
    parts = what.add_mutually_exclusive_group()
    parts.add_argument("--adapt", metavar="KEY",
                       help="only an adapter: see `corank adapt --list`")  # fmt: skip
    parts.add_argument("--factorize", metavar="KEY",
                       help="structured weights in the place of dense ones: see `corank "
                       "methods --area train`")  # fmt: skip
    what.add_argument("--rank", type=int, metavar="R", help="of the adapter or factorisation")
    options.add_targets(what)
    what.add_argument("--optimizer", metavar="KEY", default="adamw",
                      help="adamw, or see `corank methods --area optimize`")  # fmt: skip
    what.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE",
                      action=recipe_file.Merged,
                      help="parameters of the adapter or factorisation; optimizer.NAME=VALUE of "
                      "the optimiser")  # fmt: skip
    what.add_argument("--format", choices=("corank", "peft"), default="corank",
                      help="of the adapter in OUT")  # fmt: skip


def _add_text(text: argparse._ArgumentGroup) -> None:
    text.add_argument("--objective", choices=("causal", "masked"),
                      help="what is predicted (default: as the configuration says)")  # fmt: skip
    text.add_argument("--tokenizer", metavar="FOLDER", type=Path,
                      help="of the tokenizer (default: the model's; a configuration without one "
                      "gets a byte-level BPE trained on the data)")  # fmt: skip
    text.add_argument("--tuning", metavar="PATH", type=Path,
                      help="to tune on (default: a share of the data's documents)")  # fmt: skip
    text.add_argument("--held-out", metavar="SHARE", type=float, default=0.1,
                      help="of the data to tune on, where no --tuning (default: 0.1)")  # fmt: skip


def _add_run(run_: argparse._ArgumentGroup) -> None:
    run_.add_argument("--steps", type=int, metavar="N", help="optimiser steps")
    run_.add_argument("--epochs", type=float, default=1.0, metavar="E", help="where no --steps")
    run_.add_argument("--accumulate", type=int, default=1, metavar="N", help="batches a step")
    run_.add_argument("--lr", type=float, default=2e-4, help="learning rate (default: 2e-4)")
    run_.add_argument("--weight-decay", type=float, default=0.0)
    run_.add_argument("--schedule", choices=("linear", "cosine", "constant_with_warmup"),
                      default="linear", help="of the learning rate")  # fmt: skip
    run_.add_argument("--warmup", type=float, default=0.03, metavar="SHARE",
                      help="of the run, in which the rate rises (default: 0.03)")  # fmt: skip
    run_.add_argument("--evaluate-every", type=int, metavar="N",
                      help="steps between evaluations, each with a checkpoint (default: a tenth "
                      "of the run)")  # fmt: skip
    run_.add_argument("--patience", type=int, metavar="N",
                      help="stop after so many evaluations without a better loss")  # fmt: skip
    run_.add_argument("--precision", choices=("bf16", "fp16"), help="autocast to it")
    run_.add_argument("--checkpointing", action="store_true", help="recompute activations")
    run_.add_argument("--tensorboard", action="store_true", help="log to OUT/checkpoints")
    run_.add_argument("--fsdp", action="store_true",
                      help="under torchrun: shard over the processes (default: DDP)")  # fmt: skip
    run_.add_argument("--cpu", action="store_true", help="also where there is a GPU")
    run_.add_argument("--resume", action="store_true", help="go on from OUT's last checkpoint")
    run_.add_argument("--seed", type=int, default=0, metavar="N")
    run_.add_argument("--dry-run", action="store_true",
                      help="print the bytes that a step takes, without weights")  # fmt: skip
    options.add_report(run_)


def run(arguments: argparse.Namespace) -> int:
    """Start, train, save, report; or only count bytes."""
    if arguments.folder is None:
        raise ValueError("name a model's FOLDER or a config.json to train")
    options.check_report(arguments.report)
    if arguments.dry_run:
        from .memory import show_memory

        return show_memory(arguments)
    if arguments.data is None:
        raise ValueError("say what to train on: --data PATH")
    from .training import train_and_save

    return train_and_save(arguments)
