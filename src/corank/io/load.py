"""Reading a folder written by `save`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ..engine.narrowing import narrow
from ..errors import FormatError
from .attach import attach
from .plain import SKELETON, load_plain
from .record import require_sealed, seal


def load(
    path: str | os.PathLike[str],
    builder: Callable[[], nn.Module] | None = None,
    *,
    keep: float | None = None,
    size: str | None = None,
    **options: Any,
) -> nn.Module:
    """The model of a folder written by `corank.save`, with its operators.

    builder: makes the uncompressed module, for a module that is not transformers' own; its values
        are replaced.
    keep: of channels that are stored sorted (`uniql`): the fraction that stays of each module's, as
        in `corank.cut`.
    size: of the whole model in bytes, "40MB", for weights saved in terms (`bitstack`): the least
        important ones are left in the files, so that the model is what compressing to this size
        would have made. Files are checked whole all the same.
    options: for `from_pretrained` of the architecture that a transformers folder names.

    Raises FormatError for a folder that is truncated, edited, newer than this corank, or that
    holds another module than the builder makes; ValueError if the builder is missing or idle, and
    for a keep or size that cannot be met, or that the weights do not serve.
    """
    model = _load(Path(path), builder, size, options)
    if keep is not None:
        narrow(model, keep)
        attach(model)
    return model


def _load(
    folder: Path, builder: Callable[[], nn.Module] | None, size: str | None, options: dict[str, Any]
) -> nn.Module:
    if (folder / SKELETON).is_file():
        if builder is None or options:
            raise ValueError(
                f"{folder} holds a plain module: call corank.load(path, builder), with a builder "
                "that makes the uncompressed module, and no options"
            )
        return load_plain(folder, builder, size)
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
    if size is not None:
        options["config"] = _asking_for(folder, size)
    model: nn.Module = architecture.from_pretrained(folder, **options)
    return model


def _asking_for(folder: Path, size: str) -> Any:
    """The configuration of a transformers folder, with `size` in our skeleton."""
    import transformers

    from .quantizer import SIZE

    config = transformers.AutoConfig.from_pretrained(folder)
    skeleton = getattr(config, "quantization_config", None) or {}
    if skeleton.get("quant_method") != "corank":
        raise ValueError(f"size={size!r}: {folder} holds no weights of corank's to drop terms of")
    require_sealed(skeleton, f"quantization_config in {folder}/config.json")
    config.quantization_config = seal(skeleton | {SIZE: size})
    return config
