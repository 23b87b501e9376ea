"""Where in a block the output of a site is simply added to: its residual sum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..models import Site
from .inputs import places
from .rows import first_input
from .streams import main_output

_ROUNDING = 1e-5  # relative to the sum's norm, for kernels that add in any order


class Sum(NamedTuple):
    """A tensor of a block's run that may be a residual sum: a norm's input or the block's output.

    norm: the norm's path within the block; None for the block. call: of the norm, from 0.
    """

    norm: str | None
    call: int = 0

    def within(self, block: str) -> str:
        """In words, for the block of that path."""
        return f"output of {block}" if self.norm is None else f"input of {block}.{self.norm}"


@contextmanager
def watch_sums(block: nn.Module) -> Iterator[dict[Sum, Tensor]]:
    """Inside, a run of the block fills the dict with copies of its candidates, as it gets there."""
    sums: dict[Sum, Tensor] = {}
    calls: Counter[str] = Counter()

    def norm_hook(name: str) -> Any:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            sums[Sum(name, calls[name])] = first_input(args, kwargs).detach().clone()
            calls[name] += 1

        return before

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        sums[Sum(None)] = main_output(output).detach().clone()

    handles = [
        module.register_forward_pre_hook(norm_hook(name), with_kwargs=True)
        for name, module in block.named_modules()
        if "Norm" in type(module).__name__
    ]
    handles.append(block.register_forward_hook(after))
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def find_sums(
    model: nn.Module, block: nn.Module, sites: Sequence[Site], run: Callable[[], object]
) -> list[Sum | None]:
    """For each site, the first tensor downstream in the block that its output is simply added to.

    run: runs the block, always on the same input. A random delta is added to the site's output;
    what then changes by delta itself, up to rounding, is a sum that the output is a term of. None
    where there is no such tensor, for convolutions, embeddings and experts, and for sites that are
    called several times in one run.
    """
    with watch_sums(block) as plain:
        run()
    return [_find(model, block, site, plain, run) for site in sites]


def _find(
    model: nn.Module,
    block: nn.Module,
    site: Site,
    plain: Mapping[Sum, Tensor],
    run: Callable[[], object],
) -> Sum | None:
    widths = {x.shape[-1] for x in plain.values()}
    if site.kind not in ("linear", "conv1d_transposed") or site.shape[0] not in widths:
        return None
    deltas: list[Tensor] = []

    def shake(_: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        # As large as what it is added to: half precision would round a small one away.
        sizes = [float(x.double().square().mean().sqrt()) for x in plain.values() if _fits(x, y)]
        noise = torch.randn(y.shape, generator=site.generator()).to(y)
        moved = y + noise * (max(sizes, default=1.0) or 1.0)
        deltas.append(moved.double() - y.double())
        return moved

    handles = [module.register_forward_hook(shake) for _, module in places(model, site)]
    try:
        with watch_sums(block) as shaken:
            run()
    finally:
        for handle in handles:
            handle.remove()
    if len(deltas) != 1:
        return None
    for place, x in shaken.items():
        if place in plain and _moved_by(deltas[0], plain[place], x):
            return place
    return None


def _fits(x: Tensor, y: Tensor) -> bool:
    return x.shape[-1] == y.shape[-1] and x.numel() == y.numel()


def _moved_by(delta: Tensor, before: Tensor, after: Tensor) -> bool:
    """Whether after = before + delta, but for the rounding of the two sums."""
    if before.shape != after.shape or not _fits(after, delta):
        return False
    error = (after.double() - before.double()).reshape(delta.shape) - delta
    tolerance = max(_ROUNDING, 4 * torch.finfo(after.dtype).eps)
    return float(error.norm()) <= tolerance * float(after.double().norm())
