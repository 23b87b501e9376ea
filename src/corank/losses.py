"""Losses that published methods train with, as plain functions."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def inverted_hinge(logits: Tensor, labels: Tensor, ignore: int = -100) -> Tensor:
    """Mean over tokens of 1 + p(label) - the largest p of any other token, for unlearning.

    logits (..., vocabulary); labels (...), already shifted to the token that each row predicts;
    those equal to `ignore` do not count. In [0, 2], low once another token is the likelier.
    From "Towards Robust and Parameter-Efficient Knowledge Unlearning for LLMs", arXiv 2408.06621,
    section 3.3. Raises ValueError where no token counts.
    """
    kept = labels != ignore
    if not bool(kept.any()):
        raise ValueError(f"every label is {ignore}: no token is left to unlearn")
    p = torch.softmax(logits[kept].float(), -1)  # (tokens, vocabulary)
    label = labels[kept].unsqueeze(-1)
    others = p.scatter(-1, label, 0.0).amax(-1)
    return (1 + p.gather(-1, label).squeeze(-1) - others).mean()


def norm_loss(weights: Iterable[Tensor]) -> Tensor:
    """Sum over all rows of (1 - |row|)^2, which draws each towards a length of one.

    weights: matrices (out, in) or filters (out, ...), a row being all that makes one output;
    vectors do not count. From "Norm Loss: An efficient yet effective regularization method for
    deep neural networks", arXiv 2103.06583, which adds 0.01 times this to the loss. Raises
    ValueError where nothing counts.
    """
    rows = [(1 - w.flatten(1).norm(dim=1)).square().sum() for w in weights if w.ndim > 1]
    if not rows:
        raise ValueError("norm_loss was given no matrix and no filters")
    return torch.stack(rows).sum()
