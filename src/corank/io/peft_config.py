"""The configuration beside LoRA matrices in PEFT's folders."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..models.kinds import RefusedModule, kind_of
from .peft_names import exactly

_TASKS = {"ForCausalLM": "CAUSAL_LM", "ForConditionalGeneration": "SEQ_2_SEQ_LM"}


def peft_config(
    model: nn.Module, ranks: Mapping[str, int], parameters: list[str], dora: bool, base: str | None
) -> dict[str, Any]:
    """Of LoRA whose scale is in its factors: alpha is the rank everywhere.

    ranks: module or parameter name -> rank; parameters: those names that are of parameters.
    """
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {exactly(path): r for path, r in ranks.items() if r != rank}
    modules = [path for path in ranks if path not in parameters]
    transposed = [kind_of(model.get_submodule(path)) == "conv1d_transposed" for path in modules]
    name = type(model).__name__
    config = {
        "peft_type": "LORA",
        "task_type": next((task for end, task in _TASKS.items() if name.endswith(end)), None),
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_dora": dora,
        "fan_in_fan_out": bool(transposed) and all(transposed),
        "target_modules": _targets(model, modules),
        "rank_pattern": others,
        "alpha_pattern": others,
    }
    return config | ({"target_parameters": parameters} if parameters else {})


def _targets(model: nn.Module, modules: list[str]) -> list[str] | str:
    """The modules as endings of names, as short as they may be, or as one regular expression."""
    names = [name for name, module in model.named_modules() if name and _adaptable(module)]
    whole = sorted(set(modules))
    for endings in (sorted({name.rpartition(".")[2] for name in modules}), whole):
        matched = [n for n in names if any(n == e or n.endswith(f".{e}") for e in endings)]
        if set(matched) <= set(whole):
            return endings
    return "|".join(re.escape(name) for name in whole)


def _adaptable(module: nn.Module) -> bool:
    try:
        return kind_of(module) is not None
    except RefusedModule:
        return True
