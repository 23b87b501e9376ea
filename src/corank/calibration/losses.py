"""The loss whose gradients are gathered: the model's own, the caller's, or a label-free one.

Per-sample gradients come out of one backward pass over a batch. The scalar that is differentiated
is a weighted sum of the samples' losses, sum_b w_b L_b, and what sample b computes meets no other
sample (evaluation mode), so dL_b/dy_b is the gradient of the scalar at y_b divided by w_b:

- the model's own loss over labels is a mean over the T labelled tokens of the batch, of which T_b
  are sample b's, and L_b is the mean over those: w_b = T_b / T;
- a caller's `loss(model, batch)` must be the mean over the batch's samples: w_b = 1 / B;
- without labels, L_b = <r_b, f(x_b)> with r_b ~ N(0, I) and f the model's final output, averaged
  over the tokens that are not padding: w_b = 1. As E[r r^T] = I, the expected square of its
  gradient is sum_k (df_k/dW)^2: "fisher" estimates by how much a unit change of each weight moves
  the output, E|f(W + D) - f(W)|^2 to second order for a D of independent entries, and
  "output_gram" the same for the outputs of a layer. Its mean gradient is zero by design.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError
from .data import samples_in
from .running import call

#: `loss(model, batch)`: a scalar, the mean over the samples of the batch.
Loss = Callable[[nn.Module, Any], Tensor]

_CAUSAL = ("ForCausalLM", "LMHeadModel", "DoubleHeadsModel")


def weighted_loss(
    model: nn.Module, batch: Any, loss: Loss | None, generator: torch.Generator, gradient: bool
) -> tuple[Tensor, Tensor]:
    """(scalar, factors (B,)): the gradient of sample b's loss is factors[b] times the scalar's.

    The labels of a causal language model are its input ids, unshifted (transformers shifts them,
    once), padding excepted, unless the batch brings its own.

    gradient: whether the mean gradient is wanted, for which a label-free loss is no use.
    Raises: DataError where there is no loss to be had, or it is not a finite scalar.
    """
    samples = samples_in(batch)
    scalar: Any
    if loss is not None:
        scalar = loss(model, batch)
        factors = torch.full((samples,), float(samples))
    elif (labels := _labels(model, batch)) is not None:
        scalar = getattr(call(model, {**batch, "labels": labels}), "loss", None)
        if scalar is None:
            raise DataError(f"{type(model).__name__} returns no loss for its labels: give loss=")
        factors = _factors(model, labels, samples)
    elif gradient:
        raise DataError("the statistic 'gradient' needs labels in the batches, or loss=")
    else:
        pooled = _pooled(call(model, batch), batch, samples)
        direction = torch.randn(pooled.shape, generator=generator)
        scalar = (pooled.float() * direction.to(pooled.device)).sum()
        factors = torch.ones(samples)
    if not isinstance(scalar, Tensor) or scalar.numel() != 1:
        raise DataError(f"the loss must be a scalar tensor, got {type(scalar).__name__}")
    if not bool(torch.isfinite(scalar)):
        raise DataError(f"the loss is {float(scalar.detach())}: no statistics can follow from it")
    return scalar, factors


def _labels(model: nn.Module, batch: Any) -> Tensor | None:
    if not isinstance(batch, Mapping):
        return None
    given = batch.get("labels")
    if isinstance(given, Tensor):
        return given
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor) or not _is_causal(model):
        return None
    mask = batch.get("attention_mask")
    return ids if mask is None else ids.masked_fill(mask == 0, -100)


def _is_causal(model: nn.Module) -> bool:
    config = getattr(model, "config", None)
    encoder_decoder = bool(getattr(config, "is_encoder_decoder", False))
    return type(model).__name__.endswith(_CAUSAL) and not encoder_decoder


def _factors(model: nn.Module, labels: Tensor, samples: int) -> Tensor:
    """T / T_b, and 0 for a sample without labels."""
    if labels.ndim < 2:
        return torch.full((samples,), float(samples))
    counted = labels[:, 1:] if _is_causal(model) else labels
    each = (counted != -100).flatten(1).sum(1).float().cpu()
    return torch.where(each > 0, each.sum() / each.clamp(min=1), 0)


def _pooled(output: Any, batch: Any, samples: int) -> Tensor:
    """The model's final output, one vector per sample: (B, features)."""
    found = None
    for name in ("sentence_embedding", "last_hidden_state", "logits"):
        if found is None:
            found = output.get(name) if isinstance(output, Mapping) else None
    if found is None:
        parts = output if isinstance(output, (tuple, list)) else (output,)
        found = next((x for x in parts if isinstance(x, Tensor)), None)
    if not isinstance(found, Tensor) or found.ndim == 0 or found.shape[0] != samples:
        raise DataError(
            "cannot tell the model's final output per sample: give loss=, a function of "
            "(model, batch) that returns a scalar"
        )
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if found.ndim == 3:
        if isinstance(mask, Tensor) and mask.shape == found.shape[:2]:
            share = (mask / mask.sum(1, keepdim=True).clamp(min=1)).to(found)
            return (found * share[:, :, None]).sum(1)
        return found.mean(1)
    return found.reshape(samples, -1)
