"""How fast the rewritten layers are, one of each kind and shape, beside the dense ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.linear import Linear
from ..operators import Dense

#: Rows that a layer is timed on: one token, and some sequences' worth.
ROWS = (1, 256)


@torch.no_grad()
def measure_layers(
    original: nn.Module, compressed: nn.Module, names: Collection[str], repeats: int = 7
) -> list[dict[str, Any]]:
    """Rows {operator, shape, sites, speed}: `speed` maps a number of rows to the speed over dense.

    names: the sites to look at; those that are no linear layers in both models, and those whose
    matrix is dense in both, are left out. Of sites with like operators and shapes the first is
    timed, in interleaved rounds on random inputs of the weight's dtype, and a speed is the ratio of
    the rounds' medians.
    """
    kinds: dict[tuple[str, tuple[int, int]], list[str]] = {}
    for name in names:
        dense, small = _find(original, name), _find(compressed, name)
        if not (type(dense) is nn.Linear and isinstance(small, Linear)):
            continue
        if not isinstance(small.operator, Dense):
            key = (_kind(small), (small.out_features, small.in_features))
            kinds.setdefault(key, []).append(name)
    found = []
    for (kind, shape), sites in kinds.items():
        pair = [original.get_submodule(sites[0]), compressed.get_submodule(sites[0])]
        speed = {str(rows): _compare(pair, rows, repeats) for rows in ROWS}
        found.append({"operator": kind, "shape": list(shape), "sites": len(sites), "speed": speed})
    return found


def slower_layers(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A plain sentence for each kind of layer that is slower than the dense one of its shape."""
    said = []
    for row in rows:
        kind = row["operator"]
        slow = {count: ratio for count, ratio in row["speed"].items() if ratio < 1}
        if slow:
            shape = " x ".join(map(str, row["shape"]))
            ratios = " and ".join(f"{r:.2f} times on {n} rows" for n, r in slow.items())
            remedy = "; corank.for_inference(model) is for this" if "Quantised" in kind else ""
            said.append(
                f"slower than dense: {kind} of {shape} ({row['sites']} sites) runs at "
                f"the dense layer's speed {ratios}{remedy}"
            )
    return said


def _kind(layer: Linear) -> str:
    """The operator, and those it is made of where it is a sum or a product."""
    parts = [type(part).__name__ for part in layer.operator.children()]
    name = type(layer.operator).__name__
    return f"{name}({', '.join(parts)})" if parts else name


def _compare(pair: Sequence[nn.Module], rows: int, repeats: int) -> float:
    weight = pair[0].weight
    assert isinstance(weight, Tensor)
    x = torch.randn(rows, weight.shape[1], dtype=weight.dtype, device=weight.device)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):
        for spent, layer in zip(seconds, pair, strict=True):
            started = perf_counter()
            layer(x)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            spent.append(perf_counter() - started)
    dense, small = (median(spent[1:]) for spent in seconds)
    return dense / small


def _find(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
