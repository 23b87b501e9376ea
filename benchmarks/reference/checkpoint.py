"""Writing the model folder and the state of training, each file whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer
from transformers import LlamaForCausalLM


def save_model(model: LlamaForCausalLM, weights: dict[str, Tensor], folder: Path) -> None:
    """Write `weights` in bf16, with the model's configuration, as a transformers folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
        copy = type(model)(model.config).to(torch.bfloat16)
        copy.load_state_dict(rounded, strict=False)  # a tied head is in the state once
        copy.tie_weights()
        copy.save_pretrained(fresh)
        for path in sorted(Path(fresh).iterdir()):
            os.replace(path, folder / path.name)


def save_state(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write named tensors and their metadata to a temporary file, then rename it."""
    temporary = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)
    os.replace(temporary, path)


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `save_state` wrote."""
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        return {name: file.get_tensor(name) for name in names}, dict(file.metadata())


def optimizer_tensors(optimizer: Optimizer, prefix: str) -> dict[str, Tensor]:
    """An optimiser's state as tensors named ``prefix.parameter.entry``."""
    return {
        f"{prefix}.{index}.{entry}": torch.as_tensor(value)
        for index, entries in optimizer.state_dict()["state"].items()
        for entry, value in entries.items()
    }


def restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor], prefix: str) -> None:
    """Put back what `optimizer_tensors` took."""
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        head, _, rest = name.partition(".")
        if head == prefix:
            index, _, entry = rest.partition(".")
            state.setdefault(int(index), {})[entry] = tensor
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
