"""Eigenpairs of a positive semidefinite operator from one product with a basis."""

from __future__ import annotations

import torch
from torch import Tensor

from .orthonormal import renewed
from .symmetric import symmetric_eigh, upper_product


def nystrom(basis: Tensor, image: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues (k,) and `rank` eigenvectors (p, rank) of Y (B^T Y)^-1 Y^T, which is below M.

    basis B: (p, k), orthonormal to about 1e-2. image Y: (p, k) = M B. The vectors lie in the range
    of the product, so they are as near as Rayleigh-Ritz would come with one product more. Computed
    with a shift of the size of rounding (Tropp, Yurtsever, Udell and Cevher 2017, algorithm 3);
    Rayleigh-Ritz in its place where B^T Y is indefinite even so.
    """
    shift = torch.finfo(image.dtype).eps * float(torch.linalg.vector_norm(image))
    moment = upper_product(image.T, basis.T).T
    moment.diagonal().add_(shift)
    lower, failed = torch.linalg.cholesky_ex(moment)
    if bool(failed):
        values, rotation = symmetric_eigh(moment)
        return values - shift, renewed(basis @ rotation[:, :rank])
    raised = torch.add(image, basis, alpha=shift)
    root = torch.linalg.solve_triangular(lower.T, raised, upper=True, left=False)
    values, rotation = symmetric_eigh(upper_product(root.T, root.T).T)
    scaled = rotation[:, :rank] * values[:rank].clamp_min(torch.finfo(values.dtype).tiny).rsqrt()
    return values - shift, renewed((scaled.T @ root.T).T)
