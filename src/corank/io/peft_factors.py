"""PEFT's adapters that multiply the weight: HRA's reflections and (IA)^3's scales."""

from __future__ import annotations

from ..models import Site
from ..operators import Base, Diagonal, Operator, Product, Reflections
from ..rewrites.adapting import trains
from .peft_values import Values, unreadable


def hra(site: Site, values: Values) -> Operator:
    if values.config.get("apply_GS"):
        raise unreadable(site, "an HRA whose vectors are orthogonalised in every step (apply_GS)")
    u = values.one("hra_u").mT.flip(0).contiguous()  # the last one meets x first
    return Product(Base(site.shape), Reflections(trains(u)))


def ia3(site: Site, values: Values) -> Operator:
    scale = values.one("ia3_l")
    diagonal = Diagonal(trains(scale.flatten()))
    if site.kind not in ("linear", "conv1d_transposed"):
        raise unreadable(site, "an (IA)^3 adapter of a weight that is not linear")
    if scale.shape[0] == 1:
        return Product(Base(site.shape), diagonal)
    if site.bias:
        raise unreadable(site, "an (IA)^3 adapter that scales a bias too")
    return Product(diagonal, Base(site.shape))
