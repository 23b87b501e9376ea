"""`corank.analyze`: look inside a model's weights."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch
from torch import nn

from ..calibration import batches, collect
from ..metrics import second_moment
from ..models import find_sites, read, require_finite
from ..operators.counting import count_each
from ..probes import spectrum
from ..report import Report, SiteRow, versions


@torch.no_grad()
def analyze(
    model: nn.Module, *, data: Any = None, targets: Any = "all-linear", **reading: Any
) -> Report:
    """Singular values and ranks of every targeted weight; the model is not changed.

    With `data` (and `reading`, as in `corank.calibration.batches`) they are those of W C^(1/2), C
    the second moment of the weight's inputs: what the outputs really use.

    Returns a Report whose sections "spectra" (site -> singular values) and "ranks" (site ->
    stable, effective and numerical rank, and ranks for 90 and 99% of the energy) hold the result.
    """
    started = perf_counter()
    sites = find_sites(model, targets)
    for site in sites:
        require_finite(model, site)
    measure = second_moment()
    report = Report("analyze", "spectrum", versions=versions())
    report.parameters = {"metric": "euclidean" if data is None else "second moment"}
    if data is not None:
        report.notes += collect(model, sites, measure.needs, batches(data, **reading))
    report.seconds["calibration"] = perf_counter() - started
    ops = [read(model, site) for site in sites]
    spectra, ranks = {}, {}
    for site, op, (numel, size) in zip(sites, ops, count_each(ops), strict=True):
        found = spectrum(op, None if data is None else measure(site.stats)).to_json()
        spectra[site.name] = found.pop("values")
        ranks[site.name] = found
        report.sites.append(
            SiteRow(
                site.name,
                site.role,
                site.layer,
                op.shape,
                numel,
                numel,
                size,
                size,
                type(op).__name__,
                found["numerical_rank"],
            )
        )
    report.sections = {"spectra": spectra, "ranks": ranks}
    report.seconds["spectra"] = perf_counter() - started - report.seconds["calibration"]
    return report
