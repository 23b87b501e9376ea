"""A few columns in floats, and the others in codes that meet rounded inputs."""

from __future__ import annotations

from functools import partial

import torch

from ..errors import SiteError
from ..metrics import Measure
from ..operators import Dense, Operator, Product, RoundedInputs, Select
from ..quantizers import Quantizer
from .factorwise import only_matrix
from .menu import Menu
from .rewrite import Counts, Family, Unit

_INDEX = 4  # bytes


def outlier_columns(
    quantizer: Quantizer, input_bits: int, threshold: float, measure: Measure
) -> Family:
    """W x -> Q(W of some inputs) round(those inputs) + W of the outliers times the outliers.

    The size is how many inputs are outliers, those of the largest "abs_max" seen. The menu has one,
    how many are above `threshold`; none, where there are no statistics yet.
    """
    return Family(
        partial(_menu, quantizer, input_bits, threshold, measure),
        partial(_build, quantizer, input_bits),
        partial(_counts, quantizer),
        measure,
        quantizer.needs | measure.needs | {"abs_max"},
    )


def _build(quantizer: Quantizer, input_bits: int, unit: Unit, size: int) -> list[Operator]:
    (site,), (op,) = unit.sites, unit.ops
    if site.kind == "embedding":
        raise SiteError(
            site.where, "an embedding reads no inputs that could be rounded",
            "Leave it out of the targets",
        )  # fmt: skip
    weight, into = only_matrix(op, site), site.shape[1]
    order = site.stats["abs_max"].to(weight.device).argsort(descending=True, stable=True)
    if size == 0:
        return [RoundedInputs(quantizer(weight, site), input_bits)]
    if size >= into:
        return [Dense(weight)]
    outliers, others = (part.sort().values for part in order.split([size, into - size]))
    codes = RoundedInputs(quantizer(weight.index_select(1, others), site), input_bits)
    floats = Dense(weight.index_select(1, outliers))
    return [
        Product(codes, Select(others.int(), into)) + Product(floats, Select(outliers.int(), into))
    ]


def _counts(quantizer: Quantizer, unit: Unit, size: int) -> list[Counts]:
    (op,) = unit.ops
    out, into = op.shape
    if size >= into:
        return [(op.numel(), op.bytes())]
    numel, bytes_ = quantizer.counts((out, into - size), op.dtype)
    index = _INDEX * into if size else 0
    return [(numel + out * size, bytes_ + out * size * op.dtype.itemsize + index)]


def _menu(
    quantizer: Quantizer, input_bits: int, threshold: float, measure: Measure, unit: Unit
) -> Menu:
    (site,), (op,) = unit.sites, unit.ops
    largest = site.stats.get("abs_max", torch.zeros(0))
    size = int((largest > threshold).sum())

    def errors() -> list[float]:
        made = _build(quantizer, input_bits, unit, size)[0]
        lost = op.dense().detach() - made.dense().detach()
        return [float(measure(site.stats).loss(lost))]

    return Menu([size], [_counts(quantizer, unit, size)[0][1]], errors)
