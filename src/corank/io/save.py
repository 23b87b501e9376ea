"""Writing a model: a transformers folder, or our own for any other module."""

from __future__ import annotations

import json
import os
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from torch import nn

from ..errors import FormatError
from .attach import attach, holds_foreign
from .compressed_tensors import save_compressed_tensors
from .folder import WEIGHTS, replace_folder
from .plain import save_plain
from .record import record, seal
from .shards import parse_bytes

_FOREIGN_WEIGHTS = (
    *("bin", "bin.index.json", "safetensors", "safetensors.index.json"),
    *("h5", "msgpack", "onnx", "gguf", "ot", "pt", "pth"),
)


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    tokenizer: Any = None,
    *,
    source: str | os.PathLike[str] | None = None,
    max_shard_size: int | str = "5GB",
    format: Literal["corank", "compressed-tensors"] = "corank",
) -> None:
    """Write a model with its operators, replacing the folder `path` whole or not at all.

    model: a transformers or sentence-transformers model becomes a folder that `from_pretrained`
        reads after `import corank`; a model without operators is saved as transformers alone
        would. Any other module becomes `model.safetensors` and `corank.json`, for
        `corank.load(path, builder)`.
    tokenizer: a tokenizer or processor, saved beside the model.
    source: the folder the model came from: its small files (tokenizer, card, modules.json and the
        modules it names) are copied unless the model or the tokenizer wrote their own.
    max_shard_size: bytes, or "5GB", per tensor file.
    format: "compressed-tensors" is what transformers, with that package, and vLLM read without
        corank. It holds evenly spaced codes of 2, 4 or 8 bits, with nothing beside them, in groups
        that divide the inputs of an nn.Linear of a transformers model; the weights stay the same
        bit for bit, but nothing of corank's is in it: loaded again it is not corank's to rewrite.

    The old files of `path` that are no weights stay. Raises FormatError for a `path` that holds
    something else than a model, or for sites that `format` cannot express, with the reasons;
    ValueError for a model on the meta device or a bad size or format; OSError naming `path` when
    the disk is full or read-only; the old folder is then untouched.
    """
    if format not in ("corank", "compressed-tensors"):
        raise ValueError(f"format must be 'corank' or 'compressed-tensors', got {format!r}")
    shard_bytes = parse_bytes(max_shard_size)
    model = getattr(model, "_orig_mod", model)  # under torch.compile
    if holds_foreign(model):
        raise FormatError(
            "the model has adapters over weights in another library's format: write them with "
            "corank.save_adapter(model, path), and load them onto the model that library makes"
        )
    _require_values(model)
    if source is not None:
        companions(Path(source))  # refused before anything is written
    with replace_folder(path) as folder:
        if format == "compressed-tensors":
            save_compressed_tensors(model, folder, shard_bytes)
        elif hasattr(model, "save_pretrained"):
            _save_pretrained(model, folder, shard_bytes)
            for config in sorted(folder.rglob("config.json")):
                _record_files(config)
        else:
            save_plain(model, folder, shard_bytes)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        if source is not None:
            copy_companions(Path(source), folder)


def companions(source: Path) -> dict[Path, Path]:
    """What a model folder holds besides the weights and the configuration: file -> its name."""
    if not source.is_dir():
        raise FormatError(f"source={str(source)!r} is not a folder; name the one the model is from")
    found = [file for file in sorted(source.iterdir()) if file.is_file()]
    if (source / "modules.json").is_file():
        for module in json.loads((source / "modules.json").read_text(encoding="utf-8")):
            if module.get("path"):
                inside = sorted((source / module["path"]).rglob("*"))
                found += [file for file in inside if file.is_file()]
    weights = (*WEIGHTS, *(f"*.{ending}" for ending in _FOREIGN_WEIGHTS), "config.json")
    return {
        file: file.relative_to(source)
        for file in found
        if file.parent != source or not any(fnmatch(file.name, pattern) for pattern in weights)
    }


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the companions of a model folder, except those that `folder` has already."""
    for file, name in companions(source).items():
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / name)


def _save_pretrained(model: Any, folder: Path, shard_bytes: int) -> None:
    from transformers import PreTrainedModel

    attach(model)
    if isinstance(model, PreTrainedModel):
        model.save_pretrained(folder, max_shard_size=shard_bytes)
    else:  # sentence-transformers shards as it likes
        model.save_pretrained(str(folder), create_model_card=False)


def _record_files(config: Path) -> None:
    """Add the sizes and digests of the tensor files beside a configuration of ours."""
    entries = json.loads(config.read_text(encoding="utf-8"))
    skeleton = entries.get("quantization_config") or {}
    if skeleton.get("quant_method") != "corank":
        return
    skeleton["files"] = record(sorted(config.parent.glob("model*.safetensors")))
    entries["quantization_config"] = seal(skeleton)
    config.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _require_values(model: nn.Module) -> None:
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_meta:
            raise ValueError(
                f"{name} is on the meta device and has no values; load the model first"
            )
