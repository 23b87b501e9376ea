"""VeRA and RandLoRA as bare matrix products: what each order of them costs, and takes.

    python -m benchmarks.products [--rounds 15] [--rows 512 4096]

(To a frozen layer, an adapter of either method adds at least half of the layer's own products,
which is why corank cannot be twice as fast as PEFT there: see the board's page.)

One layer of width w, n rows, gradients written out by hand, so that nothing but the products and
the passes over elements between them is timed. Every form gives the same numbers.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.adapters import RESULTS, WIDTH, in_turn
from benchmarks.board.store import Results

Gradients = tuple[Tensor, Tensor, Tensor, Tensor]  #: y, and those of x and of both leaves


@dataclass(frozen=True)
class Layer:
    """A frozen weight (w, w), its rows x and the gradients g of its outputs (n, w)."""

    weight: Tensor
    x: Tensor
    g: Tensor

    def bare(self) -> tuple[Tensor, Tensor]:
        """Forward and backward without an adapter."""
        return self.x @ self.weight.mT, self.g @ self.weight


def draw(*shape: int, seed: int) -> Tensor:
    """Normal numbers that keep variances."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5


def vera(layer: Layer, rank: int = 256) -> dict[str, tuple[float, Callable[[], Gradients]]]:
    """Name -> multiply-adds above the bare layer's and the form, for W + diag(b) B diag(d) A."""
    n, w = layer.x.shape
    a, b_matrix = draw(rank, w, seed=2), draw(w, rank, seed=3)
    b, d = draw(w, seed=4), draw(rank, seed=5)
    weight, x, g = layer.weight, layer.x, layer.g

    def apart() -> Gradients:
        z = x @ a.mT
        p = (z * d) @ b_matrix.mT
        u = (g * b) @ b_matrix
        grad_x = torch.addmm(g @ weight, u * d, a)
        return x @ weight.mT + b * p, grad_x, (g * p).sum(0), (u * z).sum(0)

    def added_first() -> Gradients:
        whole = torch.addmm(weight, b[:, None] * b_matrix * d, a)
        c = g.mT @ (x @ a.mT)  # (w, r)
        grad_b, grad_d = (c * b_matrix * d).sum(1), (c * b_matrix * b[:, None]).sum(0)
        return x @ whole.mT, g @ whole, grad_b, grad_d

    return {
        "as it stands": (4 * n * w * rank, apart),
        "added to W first": (w * w * rank + 2 * n * w * rank, added_first),
    }


def randlora(layer: Layer, rank: int = 32) -> dict[str, tuple[float, Callable[[], Gradients]]]:
    """The same for W + sum over i of B_i diag(l_i) A diag(g_i), of full rank."""
    n, w = layer.x.shape
    bases = w // rank
    a, b = draw(rank, w, seed=2), draw(w, w, seed=3)
    scales, gammas = draw(rank, bases, seed=4), draw(bases, w, seed=5)
    weight, x, g = layer.weight, layer.x, layer.g

    def rows() -> Tensor:  # (r bases, w)
        return (scales[:, :, None] * a[:, None] * gammas).flatten(0, 1)

    def of_rows(grad: Tensor) -> tuple[Tensor, Tensor]:
        grad = grad.view(rank, bases, w) * a[:, None]
        return (grad * gammas).sum(2), torch.einsum("ijk,ij->jk", grad, scales)

    def apart() -> Gradients:
        right = rows()
        y = torch.addmm(x @ weight.mT, x @ right.mT, b.mT)
        u = g @ b
        return y, torch.addmm(g @ weight, u, right), *of_rows(u.mT @ x)

    def added_first() -> Gradients:
        whole = torch.addmm(weight, b, rows())
        return x @ whole.mT, g @ whole, *of_rows((g @ b).mT @ x)

    def row_by_row() -> Gradients:
        right = (a[:, None] * gammas).flatten(0, 1)
        z, u, flat = x @ right.mT, g @ b, scales.flatten()
        y, grad_x = torch.addmm(x @ weight.mT, z * flat, b.mT), g @ weight
        apiece = (u * flat).view(n, rank, bases).transpose(1, 2)
        grad_gammas = torch.zeros_like(gammas)
        for start in range(0, n, 16):  # so that what is made stays near the processor
            part = slice(start, start + 16)
            t = apiece[part].reshape(-1, rank) @ a  # both gradients come of this one product
            t = t.view(-1, bases, w)
            grad_x[part] += (t * gammas).sum(1)
            grad_gammas += (t * x[part, None]).sum(0)
        return y, grad_x, (u * z).sum(0).view(rank, bases), grad_gammas

    return {
        "as it stands": (5 * n * w * w, apart),
        "added to W first": (w**3 + 2 * n * w * w, added_first),
        "x's and g's gradients of one product": (4 * n * w * w, row_by_row),
    }


FORMS = {"VeRA r256": vera, "RandLoRA r32": randlora}


def measure(name: str, count: int, rounds: int, width: int = WIDTH) -> dict[str, object]:
    """Seconds above the bare layer's, and multiply-adds, of every form."""
    layer = Layer(
        draw(width, width, seed=0), draw(count, width, seed=1), draw(count, width, seed=6)
    )
    forms = FORMS[name](layer)
    taken = in_turn({"": layer.bare, **{form: run for form, (_, run) in forms.items()}}, rounds)
    return {
        "key": f"{name}, {count} rows",
        "bare": taken[""],
        "seconds": {form: taken[form] - taken[""] for form in forms},
        "multiply_adds": {form: adds for form, (adds, _) in forms.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(options.out)
    for name in FORMS:
        for count in options.rows:
            row = measure(name, count, options.rounds)
            results.add("products", row)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    sys.exit(main())
