"""Hooks that gather per-sample weight gradients and output gradients at every site."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import DataError, SiteError
from ..linalg import GramAccumulator
from ..models import Site
from .contributions import Contribution, at_expert, at_module
from .data import samples_in
from .experts import explicit_forward
from .rows import Masks, first_input, kept


@final
class GradientPass:
    """A context in which a forward and `backward` accumulate the loss statistics of the sites.

    No parameter's gradient is computed by autograd: the gradient of sample b's loss at a weight is
    G_b = sum over its rows of g x^T, from the inputs x and output gradients g of the module, and
    summed over every place where the weight is used.
    """

    def __init__(
        self, model: nn.Module, sites: Sequence[Site], needs: frozenset[str], device: torch.device
    ) -> None:
        self.model, self.sites, self.device = model, list(sites), device
        self.samples = torch.zeros((), dtype=torch.float64, device=device)
        weights = [name for name in ("fisher", "gradient") if name in needs]
        self.sums: list[dict[str, Tensor]] = [
            {n: torch.zeros(s.shape, dtype=torch.float64, device=device) for n in weights}
            for s in self.sites
        ]
        self.grams: list[GramAccumulator | None] = [
            GramAccumulator(s.shape[0], device)
            if "output_gram" in needs and s.kind != "embedding"
            else None
            for s in self.sites
        ]
        self._handles: list[RemovableHandle] = []
        self._replaced: list[tuple[nn.Module, Any]] = []
        self._masks = Masks(None, None, False)
        self._size = 0
        self._weights: list[float] = []
        self._forget()

    def __enter__(self) -> GradientPass:
        experts: dict[str, dict[tuple[str, int], int]] = {}
        for index, site in enumerate(self.sites):
            if site.kind == "expert":
                path, projection, number = site.expert
                experts.setdefault(path, {})[projection, number] = index
                continue
            modules = [self.model.get_submodule(path) for path in (site.path, *site.tied)]
            for module in {id(m): m for m in modules}.values():
                hook = module.register_forward_hook(self._hook(index), with_kwargs=True)
                self._handles.append(hook)
        for path, indices in experts.items():
            module = self.model.get_submodule(path)
            self._replaced.append((module, module.__dict__.get("forward")))
            module.forward = explicit_forward(module, self._observe(indices))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        for module, forward in self._replaced:
            if forward is None:
                del module.forward
            else:
                module.forward = forward
        self._handles.clear()
        self._replaced.clear()
        self._forget()

    def _forget(self) -> None:
        self._calls: dict[int, int] = {}
        self._pending: dict[int, list[Contribution]] = {}
        self._leaves: list[Tensor] = []

    def begin(self, batch: Any) -> None:
        """Before each forward."""
        self._masks = Masks.of(self.model, batch)
        self._size = samples_in(batch)
        self._forget()

    def backward(self, scalar: Tensor, factors: Tensor) -> None:
        """After each forward: gather from the scalar's gradient; `factors` as in `losses`.

        Raises: DataError if the scalar depends on no site; SiteError for gradients not finite.
        """
        if not scalar.requires_grad or not self._leaves:
            raise DataError("the loss depends on none of the sites: check loss= and the targets")
        self._weights = factors.tolist()
        torch.autograd.grad(scalar, self._leaves, allow_unused=True)
        for index in list(self._pending):
            self._flush(index)
        self.samples += self._size
        self._forget()

    def finish(self) -> None:
        """Sum over the ranks. Collective where torch.distributed is initialised."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        dist.all_reduce(self.samples)
        for sums, gram in zip(self.sums, self.grams, strict=True):
            for total in sums.values():
                dist.all_reduce(total)
            if gram is not None:
                gram.all_reduce()

    def store(self) -> list[str]:
        """Put the statistics into the sites; returns a note for each that the loss never saw."""
        notes = []
        for site, sums, gram in zip(self.sites, self.sums, self.grams, strict=True):
            for name, total in sums.items():
                site.stats[name] = (total / self.samples).float()
            if gram is None:
                continue
            if float(gram.count) > 0:
                site.stats["output_gram"] = gram.second_moment()
            elif site.kind != "expert":  # an expert that saw no token is dealt with by its layer
                site.stats["output_gram"] = torch.zeros_like(gram.outer_sum, dtype=torch.float32)
                notes.append(f"{site.name}: the loss does not depend on it, so no error counts")
        return notes

    def _hook(self, index: int) -> Any:
        site = self.sites[index]

        def after(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor
        ) -> Tensor:
            x = first_input(args, kwargs).detach()
            made = at_module(site, module, x, self._size)
            return self._watch(index, y, made, kept(y.shape[:-1], self._masks.at(site)))

        return after

    def _observe(self, indices: dict[tuple[str, int], int]) -> Any:
        def observe(
            projection: str, expert: int, token: Tensor, tokens: int, x: Tensor, y: Tensor
        ) -> Tensor:
            index = indices.get((projection, expert))
            if index is None:
                return y
            made = at_expert(self.sites[index], x.detach(), token, tokens, self._size)
            keep = kept(torch.Size([tokens]), self._masks.at(self.sites[index]))
            return self._watch(index, y, made, None if keep is None else keep[token])

        return observe

    def _watch(self, index: int, y: Tensor, made: Contribution, keep: Tensor | None) -> Tensor:
        """The y to go on with, whose gradient is gathered when it arrives."""
        self._calls[index] = self._calls.get(index, 0) + 1
        if not y.requires_grad:
            leaf = y.detach().requires_grad_()
            self._leaves.append(leaf)
            y = leaf.clone()  # which may be written to in place, as a leaf may not

        def arrived(gradient: Tensor) -> None:
            self._arrived(index, gradient.detach(), made, keep)

        y.register_hook(arrived)
        return y

    def _arrived(
        self, index: int, gradient: Tensor, made: Contribution, keep: Tensor | None
    ) -> None:
        site, gram = self.sites[index], self.grams[index]
        if not bool(torch.isfinite(gradient).all()):
            raise SiteError(
                site.where, "the gradient at its output is not finite",
                "Run the model in bfloat16 or float32, or give another loss",
            )  # fmt: skip
        made.gradient = gradient
        if gram is not None and gradient.numel():
            rows = made.weighted_rows(self._weights)
            gram.add(rows if keep is None else rows[keep.to(rows.device)])
        pending = self._pending.setdefault(index, [])
        if self.sums[index]:
            pending.append(made)
        if len(pending) == self._calls[index]:
            self._flush(index)

    def _flush(self, index: int) -> None:
        made, sums = self._pending.pop(index, []), self.sums[index]
        if not made:
            return
        for sample, weight in enumerate(self._weights):
            parts = [part.of(sample) for part in made]
            whole = sum(parts[1:], parts[0]).double() * weight  # (m, n): dL_b/dW
            if "fisher" in sums:
                sums["fisher"] += whole.square()
            if "gradient" in sums:
                sums["gradient"] += whole
