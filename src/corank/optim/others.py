"""Optimisers that other packages have, in one call each."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..registry import Paper, method
from .groups import groups

_INSTALL = "pip install 'corank[optim]'"


def _parameters(params: Any) -> Any:
    return groups(params) if isinstance(params, nn.Module) else params


@method(
    Paper(
        "8-bit Optimizers via Block-wise Quantization",
        "2110.02861",
        "torchao's AdamW8bit and AdamW4bit",
        "tensors of fewer than 4096 numbers, or not a multiple of the block, stay in float32; the "
        "step is compiled on its first call",
    ),
    area="optimize",
)
def adamw_8bit(params: Any, lr: float = 1e-3, bits: int = 8, **options: Any) -> Optimizer:
    """torchao's AdamW with both moments in 8 or 4 bits.

    params: parameters, groups of them, or a model, whose groups are those of `corank.optim.groups`.
    options: of torchao's class: betas, eps, weight_decay, block_size, bf16_stochastic_round.
    Raises ImportError where torchao is not installed, ValueError for other bits.
    """
    if bits not in (4, 8):
        raise ValueError(f"bits must be 4 or 8, got {bits!r}")
    try:
        from torchao.optim import AdamW4bit, AdamW8bit
    except ImportError as error:
        raise ImportError(f"adamw_8bit is torchao's: {_INSTALL}") from error
    kind = AdamW8bit if bits == 8 else AdamW4bit
    made: Optimizer = kind(_parameters(params), lr, **options)
    return made


@method(
    Paper(
        "A Distributed Data-Parallel PyTorch Implementation of the Distributed Shampoo Optimizer "
        "for Training Neural Networks At-Scale",
        "2309.06497",
        "pytorch-optimizer's ScalableShampoo: blocks, grafting, a late start",
        "the paper's own package is in no registry of packages; nothing is spread over processes; "
        "the state holds objects of that package, so that torch.load refuses it as weights only",
    ),
    area="optimize",
)
def shampoo(
    params: Any, lr: float = 1e-3, block_size: int = 1024, every: int = 100, **options: Any
) -> Optimizer:
    """pytorch-optimizer's Shampoo: L^(-1/4) G R^(-1/4) in blocks, as long as the gradient.

    params: as `adamw_8bit`'s. every: steps from one pair of roots to the next.
    options: of `pytorch_optimizer.ScalableShampoo`, such as start_preconditioning_step. It takes
        matrices no larger than a block as vectors, unless shape_interpretation=False.
    Raises ImportError where pytorch-optimizer is not installed.
    """
    try:
        from pytorch_optimizer import ScalableShampoo
    except ImportError as error:
        raise ImportError(f"shampoo is pytorch-optimizer's: {_INSTALL}") from error
    made: Optimizer = ScalableShampoo(
        _parameters(params),
        lr,
        block_size=block_size,
        preconditioning_compute_steps=every,
        **options,
    )
    return made
