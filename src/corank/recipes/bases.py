"""Adapters in a fixed basis: Fourier and wavelet."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import SiteError
from ..models import Site
from ..operators import (
    Fourier,
    LowRank,
    Operator,
    Product,
    Repeated,
    Transpose,
    Wavelet,
)
from ..registry import Adaptation, Paper, method
from ..rewrites import plus
from ..rewrites.adapting import kaiming, normal, require_rank, zeros
from .counts import each

ADAPTER = ("adapter", "preserves")


def _fourierft(w: Tensor, p: dict[str, Tensor], scaling: float = 150.0, **_: object) -> Tensor:
    spectrum = torch.zeros_like(w).flatten().index_put((p["index"].long(),), p["values"])
    return w + scaling * torch.fft.ifft2(spectrum.view_as(w)).real


@method(
    Paper(
        "Parameter-Efficient Fine-Tuning with Discrete Fourier Transform",
        "2405.03003",
        "equations 2 to 4, by their numbers in notes on the paper",
        "the matrix is not made: x is transformed instead, to the same product; the frequency bias "
        "of an ablation is left out",
    ),
    area="adapt",
    laws=("adapter",),
    equation=_fourierft,
)
def fourierft(
    n_frequency: int = 1000,
    scaling: float = 150.0,
    random_loc_seed: int = 777,
    init_weights: bool = False,
) -> Adaptation:
    """W + scaling Re ifft2(S) with `n_frequency` trained entries of S, at random places.

    The places are the same for all weights of one shape, drawn as PEFT draws them. init_weights
    as PEFT's: False starts from normal numbers, as the paper does, so the function changes a
    little; True from zero.
    """

    def delta(op: Operator, site: Site) -> Operator:
        out, into = op.shape
        if not 1 <= n_frequency <= out * into:
            raise SiteError(
                site.where,
                f"n_frequency = {n_frequency} is outside 1 to {out * into}",
                "Ask for that many of its frequencies at most.",
            )
        seeded = torch.Generator().manual_seed(random_loc_seed)
        index = torch.randperm(out * into, generator=seeded)[:n_frequency]
        index = index.to(op.device, torch.int32 if out * into <= 2**31 else torch.int64)
        values = zeros(op, n_frequency) if init_weights else normal(op, site, n_frequency)
        return Fourier(values, index, op.shape, scaling)

    return Adaptation(plus(delta), each(lambda out, into: n_frequency))


#: The filters of the orthogonal wavelets (Daubechies, 1988), by PyWavelets' names.
TAPS = {
    "haar": (math.sqrt(0.5), math.sqrt(0.5)),
    "db2": tuple(
        (a + b * math.sqrt(3)) / math.sqrt(32) for a, b in ((1, 1), (3, 1), (3, -1), (1, -1))
    ),
}


def _wara(
    w: Tensor, p: dict[str, Tensor], rank: int = 8, alpha: float = 16.0, wavelet: str = "haar"
) -> Tensor:
    def basis(size: int) -> Tensor:
        found = w.new_zeros(size, size)
        for i in range(size // 2):
            for lag, tap in enumerate(TAPS[wavelet]):
                found[i, (2 * i + lag) % size] += tap
                found[size // 2 + i, (2 * i + lag) % size] += (-1) ** lag * TAPS[wavelet][-1 - lag]
        return found

    band = p["b"] @ p["a"]
    return w + alpha / rank * basis(w.shape[0]).mT @ torch.block_diag(band, band) @ basis(
        w.shape[1]
    )


@method(
    Paper(
        "WaRA: Wavelet Low Rank Adaptation",
        "2506.24092",
        "the figure of the first version: one low-rank pair on every band of one level",
        "the transform over tokens is left out: one linear pair acts on all bands, so it cancels "
        "and what is left is a matrix that merges; wavelet, scale, rank and the start of b at zero "
        "are this library's, the sources name none",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=_wara,
)
def wara(rank: int = 8, alpha: float = 16.0, wavelet: str = "haar") -> Adaptation:
    """A low-rank pair between wavelet transforms, the same on the smooth and the detail band.

    wavelet: "haar" or "db2". Both sides of the weight must be even; half of LoRA's numbers train,
    for a rank up to 2 rank.
    """
    if wavelet not in TAPS:
        raise ValueError(f"wavelet must be one of {', '.join(TAPS)}, got {wavelet!r}")

    def delta(op: Operator, site: Site) -> Operator:
        out, into = op.shape
        if out % 2 or into % 2:
            raise SiteError(
                site.where,
                "a side is odd, which a wavelet cannot halve",
                "Leave it out of targets=",
            )
        require_rank(rank, site)
        band = LowRank(zeros(op, out // 2, rank), kaiming(op, site, rank, into // 2))
        taps = TAPS[wavelet]
        return Product(Transpose(Wavelet(out, taps)), Repeated(band, 2), Wavelet(into, taps))

    return Adaptation(plus(delta, alpha / rank), each(lambda m, n: rank * (m // 2 + n // 2)))
