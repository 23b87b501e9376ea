"""What each PEFT type's tensors mean, as operators over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import FormatError, SiteError
from ..models import Site
from ..operators import (
    Base,
    ColumnNormalised,
    Dense,
    Diagonal,
    Hadamard,
    Kron,
    LowRank,
    Operator,
    Product,
    Reflections,
    RowNormalised,
    Scaled,
    Sum,
)
from ..rewrites.adapting import trains
from .peft_names import pattern_value

#: Options of a LoRA configuration that make it something else than W + s B A, or DoRA.
_VARIANTS = (
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "lora_bias"),
    *("monteclora_config", "trainable_token_indices", "use_bdlora", "use_qalora"),
)
#: Starts for which PEFT changes the base weights, so that the tensors alone mean nothing.
_MUTATING = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Values:
    """The tensors of one weight, those of all, and the configuration."""

    own: Mapping[str, Tensor]
    shared: dict[Any, Any]
    config: Mapping[str, Any]
    path: str

    def scale(self, rank: int, alpha: str = "lora_alpha") -> float:
        """alpha / rank, alpha by its pattern; by the root of the rank where the file says so."""
        patterns = self.config.get("alpha_pattern") or {}
        value = pattern_value(patterns, self.path, self.config.get(alpha, 1))
        return float(value) / (rank**0.5 if self.config.get("use_rslora") else rank)

    def one(self, *names: str) -> Tensor:
        """The tensor under the first of these names that there is. Raises FormatError."""
        for name in names:
            if name in self.own:
                return self.own[name]
        raise FormatError(f"{self.path} lacks its {names[0]}")


@dataclass(frozen=True)
class PeftType:
    """How one PEFT type is read: the ends of its tensors' names, what it makes of them, the
    method it amounts to, tensors that all weights share, and what it refuses."""

    leaves: tuple[str, ...]
    build: Callable[[Site, Values], Operator]
    method: Callable[[Mapping[str, Any]], tuple[str, dict[str, Any]]]
    shared: tuple[str, ...] = ()
    require: Callable[[Mapping[str, Any]], None] = lambda config: None


def _plus(site: Site, term: Operator, scale: float = 1.0) -> Sum:
    return Sum(Base(site.shape), term if scale == 1 else Scaled(term, scale))


def _lora(site: Site, values: Values) -> Operator:
    magnitude = ("lora_magnitude_vector", "lora_magnitude_vector.weight")
    if any("embedding" in name for name in values.own):
        a, b = values.one("lora_embedding_B").mT, values.one("lora_embedding_A").mT
        kind: Any = ColumnNormalised
    else:
        a, b = values.one("lora_A.weight").flatten(1), values.one("lora_B.weight").flatten(1)
        kind = RowNormalised
    low = LowRank(trains(b.contiguous()), trains(a.contiguous()))
    whole = _plus(site, low, values.scale(low.rank))
    if not values.config.get("use_dora"):
        return whole
    m: Operator = kind(whole, trains(values.one(*magnitude).flatten()))
    return m


def _require_lora(config: Mapping[str, Any]) -> None:
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


def _lora_method(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    key = "rslora" if config.get("use_rslora") else "lora"
    key = "dora" if config.get("use_dora") else key
    return key, {"rank": config.get("r", 8), "alpha": float(config.get("lora_alpha", 8))}


def _adalora(site: Site, values: Values) -> Operator:
    b, a, gate = (values.one(f"lora_{letter}") for letter in "BAE")
    scale = float(values.config.get("lora_alpha") or len(a)) / (len(a) + 1e-5)
    return _plus(site, LowRank(trains(b), trains(a), trains(gate.flatten())), scale)


def _loha(site: Site, values: Values) -> Operator:
    if any(name in values.own for name in ("hada_t1", "hada_t2")):
        raise _unreadable(site, "a LoHa of a convolution in its Tucker form")
    p, q = (
        LowRank(trains(values.one(f"hada_w{i}_a")), trains(values.one(f"hada_w{i}_b")))
        for i in (1, 2)
    )
    return _plus(site, Hadamard(p, q), values.scale(p.rank, "alpha"))


def _lokr(site: Site, values: Values) -> Operator:
    if "lokr_t2" in values.own:
        raise _unreadable(site, "a LoKr of a convolution in its Tucker form")
    if any(tensor.ndim == 3 for tensor in values.own.values()):
        raise _unreadable(site, "a LoKr of nn.Conv1d, which is no Kronecker product,")
    factors = [_lokr_factor(values, f"lokr_w{i}") for i in (1, 2)]
    rank = pattern_value(values.config.get("rank_pattern") or {}, values.path, values.config["r"])
    return _plus(site, Kron(*factors), values.scale(rank, "alpha"))


def _lokr_factor(values: Values, name: str) -> Operator:
    if name in values.own:
        return Dense(trains(values.own[name].flatten(1)))
    return LowRank(trains(values.one(f"{name}_a")), trains(values.one(f"{name}_b")))


def _vera(site: Site, values: Values) -> Operator:
    a, b = values.shared["vera_A"], values.shared["vera_B"]
    if a is None or b is None:
        raise FormatError(
            "this VeRA adapter was saved without its projections, which would have to be drawn "
            "again: save it from PEFT with save_projection=True"
        )
    key = ("vera", site.shape)
    if key not in values.shared:  # once for all weights of this shape
        out, into = site.shape
        values.shared[key] = LowRank(b[:out].clone(), a[:, :into].clone())
    low = values.shared[key]
    d = trains(values.one("vera_lambda_d"))
    return _plus(
        site, Product(Diagonal(trains(values.one("vera_lambda_b"))), LowRank(low.b, low.a, d))
    )


def _hra(site: Site, values: Values) -> Operator:
    if values.config.get("apply_GS"):
        raise _unreadable(site, "an HRA whose vectors are orthogonalised in every step (apply_GS)")
    u = values.one("hra_u").mT.flip(0).contiguous()  # the last one meets x first
    return Product(Base(site.shape), Reflections(trains(u)))


def _miss(site: Site, values: Values) -> Operator:
    block = values.one("miss_block")
    if values.config.get("init_weights") == "bat":
        raise _unreadable(site, "a MiSS adapter of the kind 'bat'")
    out, into = site.shape
    rank = len(block)
    key = ("miss", rank, into)
    if key not in values.shared:  # the rows of x are added up, rank by rank
        eye = torch.eye(rank, dtype=block.dtype, device=block.device)
        values.shared[key] = LowRank(
            block.new_zeros(1, rank), eye.repeat(1, -(-into // rank))[:, :into]
        )
    if block.shape[1] != out:
        raise _unreadable(site, "a MiSS adapter of the kind 'mini'")
    return _plus(site, LowRank(trains(block.mT.contiguous()), values.shared[key].a))


def _ia3(site: Site, values: Values) -> Operator:
    scale = values.one("ia3_l")
    diagonal = Diagonal(trains(scale.flatten()))
    if site.kind not in ("linear", "conv1d_transposed"):
        raise _unreadable(site, "an (IA)^3 adapter of a weight that is not linear")
    if scale.shape[0] == 1:
        return Product(Base(site.shape), diagonal)
    if site.bias:
        raise _unreadable(site, "an (IA)^3 adapter that scales a bias too")
    return Product(diagonal, Base(site.shape))


def _unreadable(site: Site, what: str) -> SiteError:
    return SiteError(site.where, f"{what} is not read", "Merge it in PEFT, or leave it out.")


def _named(key: str, *options: str) -> Callable[[Mapping[str, Any]], tuple[str, dict[str, Any]]]:
    """A method of that key with these options of the configuration, by PEFT's names for them."""
    ours = {"r": "rank", "lora_alpha": "alpha"}
    return lambda config: (key, {ours.get(o, o): config[o] for o in options if o in config})


_DORA = ("lora_magnitude_vector", "lora_magnitude_vector.weight")
_PAIR = ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B")
_HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
_LOKR = tuple(f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2"))

#: Every PEFT type that is read, by PEFT's name for it.
PEFT_TYPES: dict[str, PeftType] = {
    "ADALORA": PeftType(("lora_A", "lora_B", "lora_E"), _adalora, _named("adalora")),
    "HRA": PeftType(("hra_u",), _hra, _named("hra", "r")),
    "IA3": PeftType(("ia3_l",), _ia3, _named("ia3")),
    "LOHA": PeftType(_HADA, _loha, _named("fedpara", "r", "alpha")),
    "LOKR": PeftType(_LOKR, _lokr, _named("lokr", "r", "alpha")),
    "LORA": PeftType((*_PAIR, *_DORA), _lora, _lora_method, require=_require_lora),
    "MISS": PeftType(("miss_block",), _miss, _named("bone", "r")),
    "VERA": PeftType(
        ("vera_lambda_b", "vera_lambda_d"), _vera, _named("vera", "r"), ("vera_A", "vera_B")
    ),
}
