"""Quantisers that go column by column, or row by row, each making good what was lost before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..errors import SiteError
from ..linalg import add_ridge
from ..linalg.checks import check_finite
from ..models import Site
from ..operators import Operator, Quantised, pack, quantise_uniform, stack_rows
from .nearest import round_to_nearest
from .quantizer import Quantizer

#: Numbers of the moments of sparse rows, each of which has its own, that are held at a time.
_AT_ONCE = 1 << 22


def error_feedback(
    bits: int = 4, group: int = 64, symmetric: bool = False, ridge: float = 0.01
) -> Quantizer:
    """Column t becomes Q(w_t + sum over s < t of (w_s - q_s) U_st), where C = (U + I) D (U + I)^T.

    C is the inputs' second moment with `ridge` >= 0 of its mean diagonal added, U strictly upper
    triangular, D diagonal: GPTQ (arXiv 2210.17323) in the form of LDLQ (2307.13304), which computes
    the same. A group's scale is fitted to what its columns would be were none of them rounded, as
    GPTQ has it.
    """
    return _sequential(partial(_triangular, ridge=ridge), bits, group, symmetric)


def greedy_paths(bits: int = 4, group: int = 64, symmetric: bool = False) -> Quantizer:
    """Column t becomes Q(w_t + sum over s < t of (w_s - q_s) C_st / C_tt): GPFQ.

    The sum is <x_t, u> / |x_t|^2 of the error u so far (arXiv 2201.11113), read off the inputs'
    second moment C. A column that is never active, C_tt = 0, is rounded by itself. What is left of
    an output's mean squared error is at most the sum of C_tt (scale_t / 2)^2 where no sum is beyond
    the codes' range: |u|^2 grows by no more than |x_t|^2 times the square of what is rounded off.
    """
    return _sequential(_projected, bits, group, symmetric)


def row_feedback(
    bits: int = 4, group: int = 64, symmetric: bool = False, ridge: float = 0.01
) -> Quantizer:
    """`error_feedback` for a matrix that is used as its transpose: W of y = W^T z.

    "gram" is then the second moment of z, (out, out), and row t makes good what the rows before it
    lost. A row's groups, of `group` outputs, have scales of their own, fitted as it is rounded.
    """
    fit = partial(quantise_uniform, bits=bits, group=group, symmetric=symmetric)

    def apply(weight: Tensor, site: Site) -> Operator:
        check_finite(weight, f"the weight of {site.where}")
        feedback = _weights(site, partial(_triangular, ridge=ridge))
        rows = weight.detach().to(feedback)
        lost, done = torch.zeros_like(rows), list[Quantised]()
        for t in range(len(rows)):
            target = rows[t] + feedback[:t, t] @ lost[:t]
            done.append(fit(target[None].to(weight.dtype)))
            lost[t] = rows[t] - done[t].dense()[0].to(rows)
        return stack_rows(done)

    counts = round_to_nearest(bits, group, symmetric).counts
    return Quantizer(apply, counts, frozenset({"gram"}))


def _triangular(gram: Tensor, ridge: float) -> Tensor:
    # C = R R^T with R upper triangular: Cholesky of C with both axes reversed.
    root = torch.linalg.cholesky(add_ridge(gram, ridge).flip(-2, -1)).flip(-2, -1)
    return (root / _diagonal(root)).triu(1)


def _projected(gram: Tensor) -> Tensor:
    size = _diagonal(gram)
    return (gram / torch.where(size > 0, size, torch.inf)).triu(1)


def _diagonal(matrix: Tensor) -> Tensor:  # (..., n, n) -> (..., 1, n)
    return matrix.diagonal(dim1=-2, dim2=-1)[..., None, :]


def _sequential(
    feedback: Callable[[Tensor], Tensor], bits: int, group: int, symmetric: bool
) -> Quantizer:
    fit = partial(quantise_uniform, bits=bits, group=group, symmetric=symmetric)

    def apply(weight: Tensor, site: Site) -> Operator:
        check_finite(weight, f"the weight of {site.where}")
        weights = _weights(site, feedback)
        return _round_in_turn(weight.detach().to(weights).mT, weights, fit, group, weight.dtype)

    def rows(values: Tensor, columns: Tensor, site: Site) -> Operator:
        """Each row by itself, on the moment of the inputs that it reads."""
        check_finite(values, f"the weight of {site.where}")
        count = values.shape[1]
        made = []
        for part, places in zip(
            *(x.split(max(1, _AT_ONCE // count**2)) for x in (values.detach(), columns.long())),
            strict=True,
        ):
            gram = site.stats["gram"][places[:, :, None], places[:, None, :]]
            gram[~gram.flatten(1).any(1)] = torch.eye(count).to(gram)  # nothing ever comes there
            weights = _weights(replace(site, stats={"gram": gram}), feedback)
            each = part.to(weights)[:, :, None]
            made.append(_round_in_turn(each, weights, fit, group, values.dtype))
        return stack_rows(made)

    counts = round_to_nearest(bits, group, symmetric).counts
    return Quantizer(apply, counts, frozenset({"gram"}), rows)


def _weights(site: Site, feedback: Callable[[Tensor], Tensor]) -> Tensor:
    if site.kind == "embedding":
        raise SiteError(
            site.where, "an embedding looks its rows up, so no column can make good another's",
            "Leave it out of the targets, or round it to nearest",
        )  # fmt: skip
    gram = site.stats["gram"].to(torch.float64)
    if not gram.any():
        return torch.zeros_like(gram)
    try:
        return feedback(gram)
    except torch.linalg.LinAlgError:
        raise SiteError(
            site.where, "its inputs' second moment is singular", "Give ridge= above 0"
        ) from None


def _round_in_turn(
    columns: Tensor, feedback: Tensor, fit: Callable[[Tensor], Quantised], group: int,
    dtype: torch.dtype,
) -> Quantised:  # fmt: skip
    """The transposes of `columns` (..., in, out) below each other, in codes.

    `feedback` (..., in, in) is strictly upper triangular: its column t weighs the errors before t.
    """
    columns = columns.contiguous()
    lost, codes, grids = torch.zeros_like(columns), torch.zeros_like(columns), []
    into = columns.shape[-2]
    for start in range(0, into, group):
        block = slice(start, min(start + group, into))
        carried = feedback[..., :start, block].mT @ lost[..., :start, :]
        inner = feedback[..., block, block] + torch.eye(block.stop - start).to(feedback)
        wanted = columns[..., block, :]
        unrounded = wanted + torch.linalg.solve_triangular(inner.mT, carried, upper=False)
        grid = fit(unrounded.mT.flatten(0, -2).to(dtype))
        scale = grid.scales()[:, 0].to(feedback).view_as(columns[..., 0, :])
        middle = torch.full_like(scale, 2 ** (grid.bits - 1))
        zero = middle if grid.zero is None else grid.zero[:, 0].to(feedback).view_as(scale)
        wanted = wanted + carried
        for i, t in enumerate(range(block.start, block.stop)):
            added = feedback[..., None, start:t, t] @ lost[..., start:t, :]
            target = wanted[..., i, :] + added[..., 0, :]
            codes[..., t, :] = ((target / scale).round() + zero).clamp(0, 2**grid.bits - 1)
            lost[..., t, :] = columns[..., t, :] - (codes[..., t, :] - zero) * scale
        grids.append(grid)
    zeros = [grid.zero for grid in grids if grid.zero is not None]
    scales = torch.cat([grid.scales() for grid in grids], 1)
    packed = pack(codes.mT.flatten(0, -2).to(torch.uint8), grids[0].bits)
    return Quantised(
        packed, scales, (len(scales), into), grids[0].bits, group,
        torch.cat(zeros, 1) if zeros else None,
    )  # fmt: skip
