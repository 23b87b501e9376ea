"""torchao's weight-only quantisation of a saved model: by transformers, or after loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

QUANTISED = ("int8", "int4")


def save_quantised(dense: Path, out: Path, bits: str) -> None:
    """The model of `dense` as transformers quantises it at loading, and writes it.

    Raises what they raise.
    """
    from transformers import AutoModelForCausalLM, TorchAoConfig

    chosen = TorchAoConfig(_config(bits))
    model: Any = AutoModelForCausalLM.from_pretrained(dense, quantization_config=chosen)
    model.save_pretrained(out)
    AutoModelForCausalLM.from_pretrained(out)


def quantise(model: Any, bits: str) -> None:
    """Quantise the linear layers of a loaded model, in place."""
    from torch import nn
    from torchao.quantization import quantize_

    quantize_(
        model.requires_grad_(False), _config(bits),
        lambda module, name: type(module) is nn.Linear and name != "lm_head",
    )  # fmt: skip


def _config(bits: str) -> Any:
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import Int8WeightOnlyConfig

    if bits == "int8":
        return Int8WeightOnlyConfig(version=2, set_inductor_config=False)
    return PrototypeInt4WeightOnlyConfig(group_size=128, set_inductor_config=False)
