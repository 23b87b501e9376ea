"""The language model that `corank train` trains: opened from a folder, or begun from nothing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..report.quiet import quiet
from .folders import import_quietly, open_model, open_tokenizer


def open_language_model(folder: Path, dtype: str | None, tokenizer: Any) -> nn.Module:
    """The model of a folder.

    Raises ValueError where it predicts no tokens, or the tokenizer has more than it embeds.
    """
    from ..training import require_room

    model: Any = open_model(folder, dtype)[0]
    if model.get_output_embeddings() is None:
        raise ValueError(
            f"{folder} holds a {type(model).__name__}, which has no head that predicts tokens: "
            "give a causal or masked language model's"
        )
    if tokenizer is not None:
        require_room(tokenizer, model.config)
    return model


def start_language_model(
    arguments: argparse.Namespace, config: Any, objective: Any, tokenizer: Any, out: Path,
    first: bool,
) -> tuple[nn.Module, Any]:  # fmt: skip
    """A model with seeded random weights, and its tokenizer: given, or trained on the data.

    A trained one is kept in OUT/tokenizer, and taken from there by a run that resumes.
    """
    from ..training import read_texts, require_room, start_model, train_tokenizer

    kept = out / "tokenizer"
    if tokenizer is None and arguments.resume:
        tokenizer = open_tokenizer(kept)
    if tokenizer is None:
        vocabulary = config.get_text_config().vocab_size
        tokenizer = train_tokenizer(read_texts(arguments.data), vocabulary, objective == "masked")
        if first:
            tokenizer.save_pretrained(kept)
    require_room(tokenizer, config)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    with quiet():
        import_quietly()
        dtype = getattr(torch, arguments.dtype or "float32")
        model = start_model(config, objective, arguments.seed, dtype)
    return model, tokenizer


def check_length(config: Any, length: int) -> None:
    """Raise ValueError for rows that are longer than the model's positions."""
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(most, int) and 0 < most < length:
        raise ValueError(
            f"--sequence-length {length}: the model has {most} positions; ask for at most that"
        )
