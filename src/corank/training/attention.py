"""What fused attention keeps for the backward pass, for tensors without values."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor

#: What makes transformers leave keys and values that heads share as they are.
_SHARED_HEADS = "TRANSFORMERS_SDPA_FORCE_GQA"


@final
class _Kept(torch.autograd.Function):
    """Keeps what a fused kernel keeps: its inputs, its output, and a float32 number a query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, length, _ = query.shape
        rows = query.new_empty(batch, length, heads, value.shape[-1])
        out = rows.transpose(1, 2)  # as the kernels lay it out: heads side by side need no copy
        sums = query.new_empty(batch, heads, length, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, sums)
        return out


@contextmanager
def fused_attention_without_values() -> Iterator[None]:
    """`scaled_dot_product_attention` as real kernels have it, in layout and in shared heads.

    Over tensors without values torch lays the output out otherwise, and transformers repeats keys
    and values that heads share: copies that a real run does not make.
    """
    functional: Any = torch.nn.functional
    real = functional.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        found: Tensor = _Kept.apply(query, key, value)
        return found

    asked = os.environ.get(_SHARED_HEADS)
    os.environ[_SHARED_HEADS] = "1"
    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = real
        del os.environ[_SHARED_HEADS]
        if asked is not None:
            os.environ[_SHARED_HEADS] = asked
