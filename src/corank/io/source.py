"""Reading a checkpoint on disk, tensor by tensor, under the names its model has in memory."""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from ..errors import FormatError
from .record import read_header


def empty_model(folder: Path) -> nn.Module:
    """The model of a transformers folder, or of a bare config.json, on the meta device.

    It has shapes, dtypes and ties, and no values.
    """
    import transformers

    if not folder.is_file() and not (folder / "config.json").is_file():
        raise FormatError(f"{folder} has no config.json; name a transformers model's folder")
    config = transformers.AutoConfig.from_pretrained(folder)
    if getattr(config, "quantization_config", None) is not None:
        raise FormatError(f"{folder} is compressed or quantised already; stream the original")
    architecture = getattr(transformers, (config.architectures or [""])[0], None)
    if architecture is None:
        raise FormatError(f"the configuration of {folder} names no architecture of transformers")
    with torch.device("meta"):
        model: nn.Module = architecture._from_config(config, dtype=config.dtype)
    for module in model.modules():  # a value of the configuration, lost on the meta device
        if "embed_scale" in module._buffers and hasattr(module, "scalar_embed_scale"):
            module._buffers["embed_scale"] = torch.tensor(module.scalar_embed_scale)
    return model


@final
class Source:
    """A safetensors checkpoint and the empty model that says what its tensors are called.

    Raises FormatError for a folder without safetensors, a truncated file, or missing tensors.
    """

    def __init__(self, folder: Path, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        self.model = model
        self.files: dict[str, Path] = {
            name: file for file in _tensor_files(folder) for name in read_header(file)
        }
        mapping = get_model_conversion_mapping(model)
        self.renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self.converters = {p: entry for entry in converters for p in entry.source_patterns}
        self.groups = self._group(converters)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name in memory, value in the model's dtype), one stored parameter at a time."""
        dtypes = {name: t.dtype for name, t in self.model.state_dict().items()}
        for target, stored in self.groups.items():
            for name, tensor in self._converted(target, stored):
                yield name, tensor.to(dtypes[name])

    def _group(self, converters: list[Any]) -> dict[str, list[tuple[str, str | None]]]:
        """Name in memory -> the stored tensors that make it, with the converter's pattern."""
        from transformers.core_model_loading import dot_natural_key, rename_source_key

        known = self.model.state_dict()
        groups: dict[str, list[tuple[str, str | None]]] = {}
        unused = []
        for key in sorted(self.files, key=dot_natural_key):
            name, pattern = rename_source_key(
                key, self.renamings, converters, self.model.base_model_prefix, known
            )
            if name in known:
                groups.setdefault(name, []).append((key, pattern))
            elif not _ignorable(self.model, name):
                unused.append(key)
        if unused:
            kind = type(self.model).__name__
            warnings.warn(f"{kind} has no place for {unused}; they are left out", stacklevel=2)
        return groups

    def _converted(
        self, target: str, stored: list[tuple[str, str | None]]
    ) -> Iterator[tuple[str, Tensor]]:
        if stored[0][1] is None:
            yield target, self._read(stored[0][0])
            return
        converter = copy.deepcopy(self.converters[stored[0][1]])
        for key, pattern in stored:
            converter.add_tensor(target, key, pattern, self._read(key))
        made = converter.convert(target, model=self.model, config=self.model.config)
        for name, value in made.items():
            yield name, value[0] if isinstance(value, list) else value

    def _read(self, key: str) -> Tensor:
        from safetensors import safe_open

        with safe_open(self.files[key], framework="pt") as file:  # mapped only while it is used
            tensor: Tensor = file.get_tensor(key)
        return tensor


def _tensor_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise FormatError(
                f"{folder} has no {name}; corank reads safetensors only, so convert other "
                "checkpoints with save_pretrained first"
            )
    return [folder / name for name in names]


def _ignorable(model: Any, name: str) -> bool:
    patterns = [r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$"]
    patterns += model._keys_to_ignore_on_load_unexpected or []
    return any(re.search(pattern, name) for pattern in patterns)
