"""Single weights that make the largest activations of a model."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..calibration import Batches
from ..calibration.data import to_device
from ..calibration.rows import first_input
from ..calibration.running import call, device_of, untouched
from ..models import Site, install, read, read_bias, snapshot
from ..operators import Dense


class Largest(NamedTuple):
    """The largest output y = W x of a site, and the largest number of the x that gave it."""

    output: float
    input: float
    row: int
    column: int


@torch.no_grad()
def super_weights(
    model: nn.Module, sites: Sequence[Site], data: Batches, spike: float = 10.0, most: int = 6
) -> dict[str, list[tuple[int, int]]]:
    """The super weights of the MLPs' second matrices: site name -> (row, column) of each.

    On the first batch, at each site the largest output and the largest number of the input behind
    it point to one weight. It is a super weight if both are above `spike` > 1 times their medians
    over the sites, and the weight alone gives more than half of that output. It is taken for zero,
    and the batch runs again, until no more are found, at most `most` times. The model is left as
    it was.
    """
    if not spike > 1 or most < 1:
        raise ValueError(f"spike={spike} must be above 1, and most={most} at least 1")
    watched = [s for s in sites if s.role == "down" and s.kind in ("linear", "conv1d_transposed")]
    found: dict[str, list[tuple[int, int]]] = {site.name: [] for site in sites}
    undo = snapshot(model, watched)
    try:
        for _ in range(most if watched else 0):
            seen = _run(model, watched, to_device(next(iter(data)), device_of(model)))
            height = spike * median(one.output for one in seen.values())
            depth = spike * median(one.input for one in seen.values())
            again = False
            for site in watched:
                one = seen[site.name]
                weight = read(model, site).dense().detach().clone()
                share = float(weight[one.row, one.column]) * one.input
                if one.output > height and one.input > depth and abs(share) > one.output / 2:
                    found[site.name].append((one.row, one.column))
                    weight[one.row, one.column] = 0
                    install(model, site, Dense(weight))
                    again = True
            if not again:
                break
    finally:
        undo()
    return found


def _run(model: nn.Module, sites: Sequence[Site], batch: Any) -> dict[str, Largest]:
    seen: dict[str, Largest] = {}

    def hook(site: Site) -> Any:
        bias = read_bias(model, site)

        def after(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            x = first_input(args, kwargs).flatten(0, -2)
            y = output if bias is None else output - bias
            one = _largest(x, y.flatten(0, -2))
            if site.name not in seen or one.output > seen[site.name].output:
                seen[site.name] = one

        return after

    handles = [
        model.get_submodule(site.name).register_forward_hook(hook(site), with_kwargs=True)
        for site in sites
    ]
    try:
        with untouched(model):
            call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _largest(x: Tensor, y: Tensor) -> Largest:  # (tokens, in), (tokens, out)
    token, row = divmod(int(y.abs().argmax()), y.shape[1])
    column = int(x[token].abs().argmax())
    return Largest(float(y[token, row].abs()), float(x[token, column].abs()), row, column)
