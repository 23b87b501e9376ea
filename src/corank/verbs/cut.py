"""`corank.cut`: a model that is held in the order of importance, made smaller still."""

from __future__ import annotations

from torch import nn

from ..engine import cutting
from ..engine.narrowing import narrow
from ..engine.summary import describe_sites, model_sizes, total_sizes
from ..io import attach
from ..report import Report, versions


def cut(model: nn.Module, *, keep: float | None = None, size: str | None = None) -> Report:
    """Drop what matters least, in place and without data, of a model held in that order.

    Exactly one of:
    keep: of channels, which "uniql" stores sorted: the fraction that stays of each module's, in
        (0, 1], rounded down to what all heads can keep alike, and at least that.
    size: of terms, which "bitstack" stores: of the whole model in bytes, "40MB", met from below.
        `corank.load` takes either too, and of terms does not read what it drops.

    One folder so serves every smaller size: what is left is what compressing the original to that
    size would have made, where no weight then stays dense. Other weights stay as they are.

    Raises ValueError, the model as it was, for a model without such weights, and for a fraction or
    size that cannot be met.
    """
    if (keep is None) == (size is None):
        raise ValueError("give exactly one of keep= (of sorted channels) and size= (of terms)")
    before = model_sizes(model)
    report = Report("cut", "", parameters={"keep": keep, "size": size}, versions=versions())
    if keep is not None:
        report.sites = describe_sites(model, narrow(model, keep))
    else:
        assert size is not None
        cutting.cut(model, size)
    attach(model)
    report.totals = total_sizes(report.sites, before, model_sizes(model))
    return report
