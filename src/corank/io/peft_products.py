"""PEFT's adapters that add a product of factors: LoRA and its variants, AdaLoRA, LoHa, LoKr."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import FormatError
from ..models import Site
from ..operators import ColumnNormalised, Dense, Hadamard, Kron, LowRank, Operator, RowNormalised
from ..rewrites.adapting import trains
from .peft_names import pattern_value
from .peft_values import Values, plus, unreadable

#: Options of a LoRA configuration that make it something else than W + s B A, or DoRA.
_VARIANTS = (
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "lora_bias"),
    *("monteclora_config", "trainable_token_indices", "use_bdlora", "use_qalora"),
)
#: Starts for which PEFT changes the base weights, so that the tensors alone mean nothing.
_MUTATING = ("pissa", "olora", "corda", "loftq", "lora_ga")


def lora(site: Site, values: Values) -> Operator:
    magnitude = ("lora_magnitude_vector", "lora_magnitude_vector.weight")
    if any("embedding" in name for name in values.own):
        a, b = values.one("lora_embedding_B").mT, values.one("lora_embedding_A").mT
        kind: Any = ColumnNormalised
    else:
        a, b = values.one("lora_A.weight").flatten(1), values.one("lora_B.weight").flatten(1)
        kind = RowNormalised
    low = LowRank(trains(b.contiguous()), trains(a.contiguous()))
    whole = plus(site, low, values.scale(low.rank))
    if not values.config.get("use_dora"):
        return whole
    m: Operator = kind(whole, trains(values.one(*magnitude).flatten()))
    return m


def require_lora(config: Mapping[str, Any]) -> None:
    for option in _VARIANTS:
        if config.get(option):
            raise FormatError(f"a PEFT adapter with {option} is not one that corank reads")
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(_MUTATING):
        raise FormatError(
            f"this adapter was started by {start!r}, for which PEFT changes the base weights, and "
            "saved without converting it. In PEFT, save it with save_pretrained(..., "
            "path_initial_model_for_weight_conversion=...) and load what that writes"
        )


def lora_method(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    key = "rslora" if config.get("use_rslora") else "lora"
    key = "dora" if config.get("use_dora") else key
    return key, {"rank": config.get("r", 8), "alpha": float(config.get("lora_alpha", 8))}


def adalora(site: Site, values: Values) -> Operator:
    b, a, gate = (values.one(f"lora_{letter}") for letter in "BAE")
    scale = float(values.config.get("lora_alpha") or len(a)) / (len(a) + 1e-5)
    return plus(site, LowRank(trains(b), trains(a), trains(gate.flatten())), scale)


def loha(site: Site, values: Values) -> Operator:
    if any(name in values.own for name in ("hada_t1", "hada_t2")):
        raise unreadable(site, "a LoHa of a convolution in its Tucker form")
    p, q = (
        LowRank(trains(values.one(f"hada_w{i}_a")), trains(values.one(f"hada_w{i}_b")))
        for i in (1, 2)
    )
    return plus(site, Hadamard(p, q), values.scale(p.rank, "alpha"))


def lokr(site: Site, values: Values) -> Operator:
    if "lokr_t2" in values.own:
        raise unreadable(site, "a LoKr of a convolution in its Tucker form")
    if any(tensor.ndim == 3 for tensor in values.own.values()):
        raise unreadable(site, "a LoKr of nn.Conv1d, which is no Kronecker product,")
    factors = [_lokr_factor(values, f"lokr_w{i}") for i in (1, 2)]
    rank = pattern_value(values.config.get("rank_pattern") or {}, values.path, values.config["r"])
    return plus(site, Kron(*factors), values.scale(rank, "alpha"))


def _lokr_factor(values: Values, name: str) -> Operator:
    if name in values.own:
        return Dense(trains(values.own[name].flatten(1)))
    return LowRank(trains(values.one(f"{name}_a")), trains(values.one(f"{name}_b")))
