"""Models to train from nothing: a configuration, and which language model it is of."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

Objective = Literal["causal", "masked"]


def read_config(path: Path) -> Any:
    """The configuration in a folder or a bare config.json; ValueError for what is none."""
    from transformers import AutoConfig

    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{file} does not exist: name a transformers model's folder or config")
    try:
        return AutoConfig.from_pretrained(file, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{file} is no configuration of transformers: {error}") from error


def objective_of(config: Any) -> Objective:
    """What a configuration's model predicts: the next token, or hidden ones.

    By the class that it names, else by the kinds of language model that transformers has for it:
    one that is not a decoder is masked where that is possible. Raises ValueError where the
    configuration is of no causal or masked language model.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING as CAUSAL
    from transformers import MODEL_FOR_MASKED_LM_MAPPING as MASKED

    kind, named = type(config), (getattr(config, "architectures", None) or [""])[0]
    if kind in MASKED and "MaskedLM" in named:
        return "masked"
    if kind in CAUSAL and ("CausalLM" in named or "LMHead" in named):
        return "causal"
    if named and not named.endswith(("Model", "ForPreTraining", "CausalLM", "MaskedLM")):
        raise ValueError(_no_language_model(config, named))
    if kind in MASKED and not getattr(config, "is_decoder", False):
        return "masked"
    if kind in CAUSAL and not getattr(config, "is_encoder_decoder", False):
        return "causal"
    raise ValueError(_no_language_model(config, named))


def start_model(
    config: Any, objective: Objective, seed: int = 0, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """A model with random weights from a configuration, drawn from `seed` alone."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    family: Any = AutoModelForMaskedLM if objective == "masked" else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = family.from_config(config, dtype=dtype)
    return model


def _no_language_model(config: Any, named: str) -> str:
    what = named or f"model type {config.model_type!r}"
    return (
        f"the configuration is of {what}, which is no causal or masked language model: give one "
        'of, say, "LlamaForCausalLM" or "BertForMaskedLM"'
    )
