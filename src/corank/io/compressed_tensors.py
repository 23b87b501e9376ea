"""Uniform codes in the packed format of the compressed-tensors package, which others read too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import FormatError
from ..layers import Linear
from ..models import survey
from ..operators import Quantised, pack
from .attach import attach, detach
from .skeletons import layers, unshared_state

_WORD = 4  # bytes of an int32


def save_compressed_tensors(model: nn.Module, folder: Path, shard_bytes: int) -> None:
    """Write a transformers model, its codes as "pack-quantized" tensors, bit for bit the same.

    Raises FormatError, with the reason for each site, where the format cannot hold what is there.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise FormatError(
            f"format='compressed-tensors' is for transformers models, not {type(model).__name__}"
        )
    held: dict[str, Any] = dict(layers(model))
    problems = [f"{path}: {why}" for path, layer in held.items() if (why := _problem(layer))]
    fused = {site.path for site in survey(model)[0] if site.kind == "expert"} - held.keys()
    problems += [f"{path}: fused experts, which are read as codes only" for path in sorted(fused)]
    groups = _groups(held) if held and not problems else {}
    asymmetric = any(not group["weights"]["symmetric"] for group in groups.values())
    if asymmetric and len(groups) > 1:
        problems = [f"{len(groups)} kinds of codes, some with zero points, of which one is read"]
    if problems or not held:
        raise FormatError(
            "format='compressed-tensors' cannot express this model: "
            f"{'; '.join(problems) or 'it holds no codes'}. Save it in corank's own format"
        )
    prefixes = tuple(f"{path}.operator." for path in held)
    tensors = {k: v for k, v in unshared_state(model).items() if not k.startswith(prefixes)}
    for path, layer in held.items():
        tensors |= {f"{path}.{name}": value for name, value in _tensors(layer.operator).items()}
        if layer.bias is not None:
            tensors[f"{path}.bias"] = layer.bias
    config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [path for path, module in model.named_modules() if isinstance(module, nn.Linear)],
        # Without it transformers (5.23) takes zero points for unpacked, and refuses their shapes.
        **({"dequantize": True} if asymmetric else {}),
    }
    with _described_by(model, config):
        model.save_pretrained(folder, state_dict=tensors, max_shard_size=shard_bytes)


def _problem(layer: nn.Module) -> str | None:
    if not isinstance(layer, Linear) or layer.transposed:
        return "it is no nn.Linear"
    op = layer.operator
    if not isinstance(op, Quantised):
        return f"it holds a {type(op).__name__}, not codes alone"
    if op.levels is not None or not isinstance(op.scale, Tensor):
        return "its codes are not evenly spaced, or its scales are codes themselves"
    if op.bits not in (2, 4, 8):
        return f"codes of {op.bits} bits, not 2, 4 or 8"
    if op.shape[1] % op.group:
        return f"groups of {op.group} that do not divide {op.shape[1]} inputs"
    return None


def _tensors(op: Quantised) -> dict[str, Tensor]:
    assert isinstance(op.scale, Tensor)
    found = {
        "weight_packed": _words(op.codes),
        "weight_scale": op.scale.detach(),
        "weight_shape": torch.tensor(op.shape),
    }
    if op.zero is not None:  # packed down the columns
        found["weight_zero_point"] = _words(pack(op.zero.mT, op.bits)).mT.contiguous()
    return found


def _words(packed: Tensor) -> Tensor:  # (n, bytes) uint8 -> (n, words) int32
    return F.pad(packed, (0, -packed.shape[1] % _WORD)).contiguous().view(torch.int32)


def _groups(held: dict[str, Any]) -> dict[str, Any]:
    """One scheme for each kind of codes there is, with the paths that it is for."""
    schemes: dict[tuple[int, int, bool], list[str]] = {}
    for path, layer in held.items():
        op = layer.operator
        key = op.bits, op.group, op.zero is None
        schemes.setdefault(key, []).append(path)
    return {
        f"group_{i}": {
            "targets": paths,
            "weights": {
                "num_bits": bits, "type": "int", "symmetric": symmetric,
                "strategy": "group", "group_size": group, "dynamic": False,
            },
        }
        for i, ((bits, group, symmetric), paths) in enumerate(schemes.items())
    }  # fmt: skip


@contextmanager
def _described_by(model: Any, config: dict[str, Any]) -> Iterator[None]:
    """The model with that configuration in the place of ours."""
    detach(model)
    model.config.quantization_config = config
    try:
        yield
    finally:
        del model.config.quantization_config
        attach(model)
