"""Reading a folder written by `save`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import FormatError
from .plain import SKELETON, load_plain


def load(
    path: str | os.PathLike[str],
    builder: Callable[[], nn.Module] | None = None,
    **options: Any,
) -> nn.Module:
    """The model of a folder written by `corank.save`, with its operators.

    builder: makes the uncompressed module, for a module that is not transformers' own; its values
        are replaced.
    options: for `from_pretrained` of the architecture that a transformers folder names.

    Raises FormatError for a folder that is truncated, edited, newer than this corank, or that
    holds another module than the builder makes; ValueError if the builder is missing or idle.
    """
    folder = Path(path)
    if (folder / SKELETON).is_file():
        if builder is None or options:
            raise ValueError(
                f"{folder} holds a plain module: call corank.load(path, builder), with a builder "
                "that makes the uncompressed module, and no options"
            )
        return load_plain(folder, builder)
    if not (folder / "config.json").is_file():
        raise FormatError(f"{folder} has neither {SKELETON} nor config.json: no saved model")
    if builder is not None:
        raise ValueError(f"{folder} is a transformers folder, which needs no builder; leave it out")
    import transformers

    try:
        names = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
        architecture = getattr(transformers, names[0])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise FormatError(
            f"{folder}/config.json names no architecture of transformers ({error}); "
            "load it with the AutoModel class that fits"
        ) from error
    model: nn.Module = architecture.from_pretrained(folder, **options)
    return model
