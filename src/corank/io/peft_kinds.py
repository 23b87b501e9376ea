"""Every PEFT type that is read: its tensors' names, its operator, its method's key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..models import Site
from ..operators import Operator
from .peft_bases import fourierft, miss, randlora, require_logits, vblora, vera
from .peft_factors import hra, ia3
from .peft_products import adalora, loha, lokr, lora, lora_method, require_lora
from .peft_values import Values


@dataclass(frozen=True)
class PeftType:
    """How one PEFT type is read: the ends of its tensors' names, what it makes of them, the
    method it amounts to, tensors that all weights share, and what it refuses."""

    leaves: tuple[str, ...]
    build: Callable[[Site, Values], Operator]
    method: Callable[[Mapping[str, Any]], tuple[str, dict[str, Any]]]
    shared: tuple[str, ...] = ()
    require: Callable[[Mapping[str, Any]], None] = lambda config: None


def _named(key: str, *options: str) -> Callable[[Mapping[str, Any]], tuple[str, dict[str, Any]]]:
    """A method of that key with these options of the configuration, by PEFT's names for them."""
    ours = {"r": "rank", "lora_alpha": "alpha", "randlora_alpha": "alpha"}
    return lambda config: (key, {ours.get(o, o): config[o] for o in options if o in config})


_DORA = ("lora_magnitude_vector", "lora_magnitude_vector.weight")
_PAIR = ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B")
_HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
_LOKR = tuple(f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2"))
_BASES = ("randlora_A", "randlora_B")
_LOGITS = ("vblora_logits_A", "vblora_logits_B")

#: Every PEFT type that is read, by PEFT's name for it.
PEFT_TYPES: dict[str, PeftType] = {
    "ADALORA": PeftType(("lora_A", "lora_B", "lora_E"), adalora, _named("adalora")),
    "FOURIERFT": PeftType(
        ("fourierft_spectrum",),
        fourierft,
        _named("fourierft", "n_frequency", "scaling", "random_loc_seed"),
    ),
    "HRA": PeftType(("hra_u",), hra, _named("hra", "r")),
    "IA3": PeftType(("ia3_l",), ia3, _named("ia3")),
    "LOHA": PeftType(_HADA, loha, _named("fedpara", "r", "alpha")),
    "LOKR": PeftType(_LOKR, lokr, _named("lokr", "r", "alpha")),
    "LORA": PeftType((*_PAIR, *_DORA), lora, lora_method, require=require_lora),
    "MISS": PeftType(("miss_block",), miss, _named("bone", "r")),
    "RANDLORA": PeftType(
        ("randlora_lambda", "randlora_gamma", *_BASES),  # PEFT writes the bases for each weight too
        randlora,
        _named("randlora", "r", "randlora_alpha"),
        _BASES,
    ),
    "VBLORA": PeftType(
        _LOGITS,
        vblora,
        _named("vb_lora", "r", "num_vectors", "vector_length", "topk"),
        ("vblora_vector_bank",),
        require_logits,
    ),
    "VERA": PeftType(
        ("vera_lambda_b", "vera_lambda_d"), vera, _named("vera", "r"), ("vera_A", "vera_B")
    ),
}
