"""PEFT's adapters whose weights share a basis: VeRA, RandLoRA, VB-LoRA, MiSS, FourierFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import FormatError
from ..models import Site
from ..operators import (
    Dense,
    Diagonal,
    Fourier,
    KhatriRao,
    LowRank,
    Operator,
    Product,
    VectorBank,
    transpose,
)
from ..rewrites.adapting import trains
from .peft_values import Values, plus, unreadable


def vera(site: Site, values: Values) -> Operator:
    a, b = _projections(values, "vera")
    key = ("vera", site.shape)
    if key not in values.shared:  # once for all weights of this shape
        out, into = site.shape
        values.shared[key] = LowRank(b[:out].clone(), a[:, :into].clone())
    low = values.shared[key]
    d = trains(values.one("vera_lambda_d"))
    return plus(
        site, Product(Diagonal(trains(values.one("vera_lambda_b"))), LowRank(low.b, low.a, d))
    )


def randlora(site: Site, values: Values) -> Operator:
    """Basis by basis here, column by column there: the two sides count in different orders."""
    scales, gammas = values.one("randlora_lambda"), values.one("randlora_gamma")
    (rank, bases), small, large = scales.shape, min(site.shape), max(site.shape)
    key = ("randlora", small, large, bases)
    if key not in values.shared:  # once for all weights of these sides
        a, b = _projections(values, "randlora")
        wide = b[:large, :bases].to(scales).flatten(1)  # a copy: the tensor holds more
        values.shared[key] = Dense(wide.clone()), Dense(a[:, 0, :small].to(scales).clone())
    wide, narrow = values.shared[key]
    rows = KhatriRao(Dense(narrow.weight), Dense(trains(gammas)))
    total = Product(Dense(wide.weight), Diagonal(trains(scales.flatten())), rows)
    scale = values.config["randlora_alpha"] / rank
    return plus(site, total if small == site.shape[1] else transpose(total), scale)


def _projections(values: Values, name: str) -> tuple[Tensor, Tensor]:
    a, b = values.shared[f"{name}_A"], values.shared[f"{name}_B"]
    if a is None or b is None:
        raise FormatError(
            f"this {name} adapter was saved without its projections, which would have to be drawn "
            "again: save it from PEFT with save_projection=True"
        )
    return a, b


def require_logits(config: Mapping[str, Any]) -> None:
    if config.get("save_only_topk_weights"):
        raise FormatError(
            "this VB-LoRA adapter was saved without most of its logits: save it from PEFT with "
            "save_only_topk_weights=False"
        )


def vblora(site: Site, values: Values) -> Operator:
    a, b = values.one("vblora_logits_A"), values.one("vblora_logits_B")
    if "bank" not in values.shared:
        bank = values.shared["vblora_vector_bank"]
        if bank is None:
            raise FormatError("this VB-LoRA adapter lacks its vector bank")
        values.shared["bank"] = trains(bank.to(a))

    def rows(logits: Tensor) -> VectorBank:
        return VectorBank(values.shared["bank"], trains(logits), values.config["topk"])

    columns = rows(b.transpose(0, 1).contiguous())
    return plus(site, Product(transpose(columns), rows(a)))


def fourierft(site: Site, values: Values) -> Operator:
    spectrum, seed = values.one("fourierft_spectrum"), int(values.config["random_loc_seed"])
    key = ("fourierft", site.shape)
    if key not in values.shared:  # the places are not in the file
        order = torch.randperm(site.numel, generator=torch.Generator().manual_seed(seed))
        values.shared[key] = order.to(spectrum.device)
    index = values.shared[key][: len(spectrum)].clone()
    return plus(site, Fourier(trains(spectrum), index, site.shape, float(values.config["scaling"])))


def miss(site: Site, values: Values) -> Operator:
    block = values.one("miss_block")
    if values.config.get("init_weights") == "bat":
        raise unreadable(site, "a MiSS adapter of the kind 'bat'")
    out, into = site.shape
    rank = len(block)
    key = ("miss", rank, into)
    if key not in values.shared:  # the rows of x are added up, rank by rank
        eye = torch.eye(rank, dtype=block.dtype, device=block.device)
        values.shared[key] = LowRank(
            block.new_zeros(1, rank), eye.repeat(1, -(-into // rank))[:, :into]
        )
    if block.shape[1] != out:
        raise unreadable(site, "a MiSS adapter of the kind 'mini'")
    return plus(site, LowRank(trains(block.mT.contiguous()), values.shared[key].a))
