"""What the sites of a block read and give in one run of it, row by row."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, final

from torch import Tensor, nn

from ..models import Site
from .experts import Routing, expert_inputs
from .inputs import places
from .residual import Sum, watch_sums
from .rows import Masks, first_input, flat_rows, geometry_of, kept, output_rows, patch_rows


@final
class Record:
    """A context for one run of a block, which keeps copies of what passes. Padding is left out.

    reading, giving: the numbers of the sites whose inputs and outputs are kept; experts can only
    be read. routes: top_k_index (tokens, k) by experts' module, to use in place of its own.
    """

    def __init__(
        self,
        model: nn.Module,
        block: nn.Module,
        sites: Sequence[Site],
        batch: Any,
        *,
        reading: Collection[int],
        giving: Collection[int],
        routes: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.inputs: dict[int, list[Tensor]] = {}  # rows (R, in) by site, call by call
        self.outputs: dict[int, list[Tensor]] = {}  # rows (R, out) by site, call by call
        self.routes: dict[str, Tensor] = {}  # where each experts' module sent its tokens
        self._model, self._block, self._sites = model, block, sites
        self._reading, self._giving, self._given_routes = reading, giving, routes
        self._masks = Masks.of(model, batch)
        self._sums: dict[Sum, Tensor] = {}
        self._recent: tuple[Tensor, int, Tensor] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Record:
        experts: dict[str, dict[tuple[str, int], int]] = {}
        for index in {*self._reading, *self._giving}:
            site = self._sites[index]
            if site.kind == "expert":
                path, projection, number = site.expert
                experts.setdefault(path, {})[projection, number] = index
                continue
            for path, module in places(self._model, site):
                hook = self._hook(index, path)
                handle = module.register_forward_hook(hook, with_kwargs=True)
                self._stack.callback(handle.remove)
        for path, indices in experts.items():
            module = self._model.get_submodule(path)
            hook = self._experts_hook(path, module, indices)
            handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            self._stack.callback(handle.remove)
        self._sums = self._stack.enter_context(watch_sums(self._block))
        return self

    def __exit__(self, *error: object) -> None:
        self._recent = None
        self._stack.close()

    def sum(self, place: Sum, site: Site) -> Tensor | None:
        """The rows (R, out) of a residual sum of `site`; None if the run did not get there."""
        found = self._sums.get(place)
        return None if found is None else flat_rows(found, self._masks.at(site))

    def _hook(self, index: int, path: str) -> Any:
        site = self._sites[index]

        def after(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor
        ) -> None:
            mask = self._masks.at(site, path)
            dims = len(geometry_of(module).kernel_size) if site.kind == "conv" else 0
            if index in self._reading:
                x = first_input(args, kwargs).detach()
                rows = patch_rows(x, module) if dims else self._shared(x, mask)
                self.inputs.setdefault(index, []).append(rows)
            if index in self._giving:
                self.outputs.setdefault(index, []).append(output_rows(y.detach(), dims, mask))

        return after

    def _shared(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """One copy for sites in a row that read the same tensor, as q, k and v do."""
        if self._recent is None or self._recent[0] is not x or self._recent[1] != x._version:
            self._recent = x, x._version, flat_rows(x, mask)
        return self._recent[2]

    def _experts_hook(
        self, path: str, module: nn.Module, indices: dict[tuple[str, int], int]
    ) -> Any:
        some = self._sites[next(iter(indices.values()))]

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            routing = Routing.of(args, kwargs)
            self.routes[path] = routing.top_k_index
            if self._given_routes is not None:
                routing = Routing(routing.hidden_states, self._given_routes[path])
            keep = kept(routing.hidden_states.shape[:-1], self._masks.at(some))
            for expert, rows in expert_inputs(module, routing, keep):
                for projection, x in rows.items():
                    if (projection, expert) in indices:
                        index = indices[projection, expert]
                        self.inputs.setdefault(index, []).append(x.detach())

        return before
