"""What a step of training takes, in bytes, known before there are any weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..models.blocks import blocks
from ..optim import LowRankOptimizer, state_bytes
from .attention import fused_attention_without_values


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step.

    `activations` is what autograd keeps from the forward pass for the backward one, without the
    weights; `recomputed` what one block adds for a moment where the blocks are checkpointed. What
    the kernels use meanwhile, and the fragments that an allocator leaves, are not in it.
    """

    weights: int
    gradients: int
    state: int
    activations: int
    recomputed: int = 0

    @property
    def total(self) -> int:
        """The sum, which a step's peak is about."""
        return sum(vars(self).values())

    def to_json(self) -> dict[str, int]:
        """Plain JSON values, with the total."""
        return vars(self) | {"total": self.total}


def training_memory(
    model: nn.Module,
    optimizer: Callable[[], Optimizer],
    batch_size: int,
    sequence_length: int,
    precision: str | None = None,
    checkpointing: bool = False,
) -> Memory:
    """What a step takes of a model on the meta device, whose tensors then stay empty.

    optimizer: makes the optimiser of it. precision: "bf16" or "fp16" for autocast.
    """
    held = {id(t): t for t in (*model.parameters(), *model.buffers())}
    trained = [p for p in model.parameters() if p.requires_grad]
    made = optimizer()
    state = state_bytes(made) if isinstance(made, LowRankOptimizer) else _stepped_state(made)
    kept, block = _faked_activations(model, batch_size, sequence_length, precision, checkpointing)
    return Memory(
        weights=sum(t.nbytes for t in held.values()),
        gradients=sum(p.nbytes for p in trained),
        state=state, activations=kept, recomputed=block,
    )  # fmt: skip


def give_values(model: nn.Module) -> None:
    """Values for a model on the meta device that take no room: each weight repeats one row.

    They are there for methods that look at weights when they start, and for nothing else.
    """
    drawn = torch.Generator().manual_seed(0)
    made: dict[int, nn.Parameter] = {}  # a tied weight stays one
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            row = 0.02 * torch.randn(p.shape[-1:], generator=drawn)
            wide = nn.Parameter(row.to(p.dtype).expand(p.shape), p.requires_grad)
            module.register_parameter(name, made.setdefault(id(p), wide))


def kept_activations(
    model: nn.Module, ids: Tensor, precision: str | None = None
) -> tuple[int, int]:
    """Bytes that a forward pass over `ids` (batch, tokens) keeps for the backward pass: of the
    whole model, and at most within one block. Every storage counts once, the model's own never."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    seen: dict[int, Any] = {}
    largest = [0]

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage._cdata not in own:
            seen[storage._cdata] = storage  # held, so that its number is not given out again
        return t

    def count() -> int:
        return sum(int(storage.nbytes()) for storage in seen.values())

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision or "")
    with ExitStack() as stack:
        for _, block in blocks(model):
            stack.enter_context(_counting(block, count, largest))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t))
        stack.enter_context(torch.autocast(ids.device.type, dtype, enabled=dtype is not None))
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    kept = count()
    del loss
    return kept, largest[0]


@contextmanager
def _counting(block: nn.Module, count: Callable[[], int], largest: list[int]) -> Iterator[None]:
    """The most that is kept between the beginning and the end of the block."""
    begun = [0]

    def begin(*_: Any) -> None:
        begun[0] = count()

    def end(*_: Any) -> None:
        largest[0] = max(largest[0], count() - begun[0])

    with block.register_forward_pre_hook(begin), block.register_forward_hook(end):
        yield


def _faked_activations(
    model: Any, batch_size: int, length: int, precision: str | None, checkpointing: bool
) -> tuple[int, int]:
    """Run the forward pass over tensors that have shapes, and no values, on a CPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    model.train()
    with FakeTensorMode(allow_non_fake_inputs=True), fused_attention_without_values():
        model.to_empty(device="cpu")
        ids = torch.zeros(batch_size, length, dtype=torch.long)
        kept, block = kept_activations(model, ids, precision)
        if not checkpointing:
            return kept, 0
        recompute = getattr(model, "activation_checkpointing_enable", None)
        (recompute or model.gradient_checkpointing_enable)()
        return kept_activations(model, ids, precision)[0], block


def _stepped_state(optimizer: Optimizer) -> int:
    """The state after a step over gradients without values."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    tensors = [t for held in optimizer.state.values() for t in held.values()]
    return sum(t.nbytes for t in tensors if isinstance(t, Tensor))
