"""Model folders: reading them, and being sure of the ones to be written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from ..report.quiet import quiet


def open_model(folder: Path, dtype: str | None = None) -> tuple[nn.Module, Any]:
    """The model of a transformers folder, in evaluation mode, and its tokenizer or None.

    The class is the one that config.json names, or AutoModel's choice where transformers has no
    such class. dtype: of the weights; None keeps the stored one. Nothing is fetched or executed.

    Raises ValueError for a folder without a model, or that lacks some of its weights.
    """
    config = _read_config(folder)
    with quiet():
        transformers = import_quietly()
        architecture = (config.get("architectures") or [""])[0]
        family = getattr(transformers, architecture, None) or transformers.AutoModel
        model, found = family.from_pretrained(
            folder, dtype=dtype or "auto", local_files_only=True, output_loading_info=True
        )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"{folder} lacks {len(missing)} weights of its {type(model).__name__}, as "
            f"{missing[0]}: complete it, or name another class in its config.json"
        )
    return model.eval(), open_tokenizer(folder)


def open_empty(path: Path, dtype: str | None = None) -> nn.Module:
    """The model of a folder or a bare config.json on the meta device: shapes and no values."""
    import torch

    from ..io.source import empty_model

    if not path.exists():
        raise ValueError(f"{path} does not exist: name a transformers model's folder or config")
    with quiet():
        import_quietly()
        model = empty_model(path)
    return model if dtype is None else model.to(getattr(torch, dtype))


def import_quietly() -> Any:
    """transformers, without progress bars of its own."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def require_tokenizer(tokenizer: Any, folder: Path, paths: list[Path]) -> None:
    """Refuse to read text for a model whose folder has no tokenizer."""
    if paths and tokenizer is None:
        raise ValueError(
            f"{folder} has no tokenizer, which reading {paths[0]} takes: save the model's own there"
        )
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} does not exist: name a text file or a folder of them")


def check_out(out: Path | None, force: bool) -> Path:
    """The folder to write to; refuses one that is missing, taken, or no folder."""
    if out is None:
        raise ValueError("say where the model goes: --out OUT")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: name a folder")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise ValueError(f"--out {out} is not empty: name another folder, or replace it by --force")
    return out


def folder_bytes(folder: Path) -> int:
    """What the files under a folder take."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: name the folder of a transformers model")
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no config.json: name the folder of a transformers model")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no configuration")
    return config


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder, or None where there is none."""
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "tokenizer.model")
    if not any((folder / name).is_file() for name in names):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
