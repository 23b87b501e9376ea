"""Writing named tensors into safetensors files of a bounded size, a few at a time."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from .record import record

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BINARY = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(size: int | str, what: str = "max_shard_size") -> int:
    """Bytes of "5GB" (decimal), "512MiB" (binary) or a number of bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    units = _UNITS | _BINARY
    if not match or match[2].upper() not in units:
        raise ValueError(f"{what} must be a number of bytes or like '5GB' or '512MiB': {size!r}")
    count = int(float(match[1]) * units[match[2].upper()])
    if count < 1:
        raise ValueError(f"{what} must be at least one byte: {size!r}")
    return count


@final
class ShardWriter:
    """Collects tensors, and writes a file whenever the next one would exceed `shard_bytes`.

    A tensor larger than `shard_bytes` gets a file of its own. At most one shard, or one larger
    tensor, is held in memory.
    """

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self.pending: dict[str, Tensor] = {}
        self.pending_bytes = 0
        self.parts: list[tuple[Path, list[str]]] = []
        self.total_bytes = self.total_numel = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a tensor; a name may be given once."""
        size = tensor.numel() * tensor.element_size()
        if self.pending and self.pending_bytes + size > self.shard_bytes:
            self._flush()
        self.pending[name] = _storable(tensor)
        self.pending_bytes += size
        self.total_bytes += size
        self.total_numel += tensor.numel()

    def finish(self) -> dict[str, dict[str, Any]]:
        """Write what is left and the index, and return the record of the files.

        One file is `model.safetensors`; several are numbered as transformers does.
        """
        if self.pending or not self.parts:
            self._flush()
        count, files, weight_map = len(self.parts), [], {}
        for number, (part, names) in enumerate(self.parts, 1):
            of = f"-{number:05d}-of-{count:05d}" if count > 1 else ""
            file = self.folder / f"model{of}.safetensors"
            os.rename(part, file)
            files.append(file)
            weight_map.update(dict.fromkeys(names, file.name))
        if count > 1:
            metadata = {"total_size": self.total_bytes, "total_parameters": self.total_numel}
            index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
            text = json.dumps(index, indent=2) + "\n"
            (self.folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
        return record(files)

    def _flush(self) -> None:
        from safetensors.torch import save_file

        part = self.folder / f"part-{len(self.parts):05d}.safetensors"
        save_file(self.pending, part, metadata={"format": "pt"})
        self.parts.append((part, list(self.pending)))
        self.pending, self.pending_bytes = {}, 0


def _storable(tensor: Tensor) -> Tensor:
    """Detached, on the CPU, contiguous, and sharing no storage that is larger than itself."""
    if tensor.device.type == "meta":
        raise ValueError("a tensor on the meta device has no values to save; load the model first")
    tensor = tensor.detach().to("cpu", memory_format=torch.contiguous_format).contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()
