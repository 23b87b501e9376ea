"""Hooks that hand every site's input, once per shared tensor, to its running sums."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import SiteError
from ..models import Mixer, Site
from .experts import OutputCosines, Routing, count_of, expert_inputs
from .rows import Masks, first_input, geometry_of, kept, patches, unmatched
from .sharing import Sharing
from .states import STATE_NEEDS, StateStatistics
from .statistics import InputStatistics, RowCounts

#: Given the statistics so far by site name, after each batch: which sites need no more data.
Watch = Callable[[Mapping[str, Mapping[str, Any]]], Collection[str]]


@final
class InputPass:
    """A context in which running the model accumulates the statistics of its sites' inputs."""

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        needs: frozenset[str],
        device: torch.device,
        alone: frozenset[int] = frozenset(),
    ) -> None:
        """alone: the sites that share no other's statistics."""
        self.model, self.sites, self.needs, self.device = model, list(sites), needs, device
        self.sharing = Sharing(len(self.sites), alone)
        self.sums: dict[int, InputStatistics | RowCounts] = {}
        self.cosines: dict[str, OutputCosines] = {}
        self.states: dict[int, StateStatistics] = {}
        self.notes: list[str] = []
        self.batches = 0
        self.order: list[int] = []  # sites as they are first called
        self.settled: set[int] = set()  # those whose sums have stopped
        self._masks = Masks(None, None, False)
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> InputPass:
        experts: dict[str, dict[tuple[str, int], int]] = {}
        for index, site in enumerate(self.sites):
            if site.kind == "expert":
                path, projection, number = site.expert
                experts.setdefault(path, {})[projection, number] = index
                self.sharing.leader[index] = index
                self.sums.setdefault(index, self._empty(site))
                continue
            for path, module in places(self.model, site):
                hook = self._hook(index, path, module)
                self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            if site.mixer is not None and self.needs & STATE_NEEDS:
                hook = self._states_hook(index, site.mixer)
                module = self.model.get_submodule(site.path)
                self._handles.append(module.register_forward_hook(hook))
        for path, indices in experts.items():
            module = self.model.get_submodule(path)
            if "output_cosines" in self.needs and path not in self.cosines:
                self.cosines[path] = OutputCosines(count_of(module), self.device)
            hook = self._experts_hook(module, indices, self.cosines.get(path))
            self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.sharing.forget()

    def begin(self, batch: Any) -> None:
        """Before each forward: whose padding to leave out."""
        self.batches += 1
        self.sharing.forget()
        self._masks = Masks.of(self.model, batch)

    def settle(self, look: Watch) -> bool:
        """After each forward: end the sums that `look` says need no more. True if all are."""
        found = {leader: self._results(leader) for leader in self.sums}
        leaders = [(s.name, i) for s, i in zip(self.sites, self.sharing.leader, strict=True)]
        enough = look({name: found[i] for name, i in leaders if i in found})
        self.settled = set(found) - {i for name, i in leaders if name not in enough}
        return all(i in self.settled for _, i in leaders)

    def finish(self) -> frozenset[int]:
        """Sum over the ranks. Returns the sites that must be collected on their own, if any."""
        self.sharing.check()
        together = dist.is_available() and dist.is_initialized()
        if together:
            self.sharing.agree(self.device)
        if self.sharing.diverged:
            return frozenset(self.sharing.diverged)
        for index, leader in enumerate(self.sharing.leader):
            if leader is None:
                raise SiteError(
                    self.sites[index].where, "the calibration data never reached it",
                    "Give data that runs it, or take it out of the targets",
                )  # fmt: skip
            if leader == index:
                sums = self.sums.setdefault(index, self._empty(self.sites[index]))
                if together:
                    sums.all_reduce()
                if sums.rows == 0 and self.sites[index].kind != "expert":
                    raise SiteError(
                        self.sites[index].where, "all its calibration rows are padding",
                        "Check the attention_mask",
                    )  # fmt: skip
        for cosines in self.cosines.values() if together else ():
            cosines.all_reduce()
        for states in self.states.values() if together else ():
            states.all_reduce()
        return frozenset()

    def store(self) -> None:
        """Put the statistics into the sites: the same tensors for all sites of a group."""
        results: dict[int, dict[str, Tensor | float]] = {}
        for index, (site, leader) in enumerate(zip(self.sites, self.sharing.leader, strict=True)):
            assert leader is not None
            if leader not in results:
                results[leader] = self._results(leader)
            site.stats.update(results[leader])
            if index in self.states:
                site.stats.update(self.states[index].results())
            if site.kind == "expert" and site.path in self.cosines:
                row = self.cosines[site.path].results()[site.expert[2]]
                site.stats["output_cosines"] = row.clone()

    def _results(self, index: int) -> dict[str, Tensor | float]:
        sums = self.sums[index]
        return sums.results() if sums.rows > 0 else {"tokens": 0.0}

    def _empty(self, site: Site) -> InputStatistics | RowCounts:
        if site.kind == "embedding":
            return RowCounts(site.shape[0], self.needs, self.device)
        return InputStatistics(site.shape[1], self.needs, self.device)

    def _hook(self, index: int, path: str, module: nn.Module) -> Any:
        site = self.sites[index]
        geometry = geometry_of(module) if site.kind == "conv" else None
        is_table = site.kind == "embedding"

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = first_input(args, kwargs).detach()
            mask = self._masks.at(site, path)
            view: Hashable = (geometry, path if is_table else None, mask is self._masks.main)
            if not self.sharing.calls[index]:
                self.order.append(index)
            if not self.sharing.claims(index, x, view):
                return
            if geometry is not None:
                for rows in patches(x, geometry):
                    self._add(index, rows)
                return
            leading = x.shape if is_table else x.shape[:-1]
            if unmatched(leading, mask):
                self._note(site)
            rows = x.reshape(-1) if is_table else x.reshape(-1, x.shape[-1])
            keep = kept(leading, mask)
            self._add(index, rows if keep is None else rows[keep.to(rows.device)])

        return before

    def _experts_hook(
        self, module: nn.Module, indices: dict[tuple[str, int], int], cosines: OutputCosines | None
    ) -> Any:
        some = self.sites[next(iter(indices.values()))]

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            routing = Routing.of(args, kwargs)
            mask = self._masks.at(some)
            leading = routing.hidden_states.shape[:-1]
            if unmatched(leading, mask):
                self._note(some)
            keep = kept(leading, mask)
            if cosines is not None:
                hidden = routing.hidden_states.detach()
                cosines.add(module, hidden if keep is None else hidden[keep])
            for expert, rows in expert_inputs(module, routing, keep):
                for projection, x in rows.items():
                    if (projection, expert) in indices:
                        self._add(indices[projection, expert], x.detach())

        return before

    def _states_hook(self, index: int, mixer: Mixer) -> Any:
        if index not in self.states:
            self.states[index] = StateStatistics(mixer, self.device)
        module, states = self.model.get_submodule(mixer.path), self.states[index]

        def after(_: nn.Module, args: tuple[Any, ...], made: Tensor) -> None:
            states.add(module, made.detach(), self._masks.at(self.sites[index]))

        return after

    def _add(self, index: int, rows: Tensor) -> None:
        site = self.sites[index]
        if rows.is_floating_point() and not bool(torch.isfinite(rows).all()):
            bad = int((~torch.isfinite(rows)).any(-1).sum())
            raise SiteError(
                site.where,
                f"{bad} of {rows.shape[0]} input rows are not finite in batch {self.batches - 1}",
                "Run the model in bfloat16 or float32, or look at that batch and the weights",
            )
        if index not in self.sums:
            self.sums[index] = self._empty(site)
        if index in self.settled:
            return
        try:
            self.sums[index].add(rows)
        except ValueError as error:
            raise SiteError(site.where, str(error), "Run the model in float32") from error

    def _note(self, site: Site) -> None:
        note = f"{site.name}: its rows do not match the attention mask; padding was not left out"
        if note not in self.notes:
            self.notes.append(note)


def places(model: nn.Module, site: Site) -> list[tuple[str, nn.Module]]:
    """Path and module of all that use a site's weight in the way of its first place, each once.

    A head tied to an embedding is another use of the table: its inputs are no token ids.
    """
    found: dict[int, tuple[str, nn.Module]] = {}
    for path in (site.path, *site.tied):
        module = model.get_submodule(path)
        if hasattr(module, "num_embeddings") == (site.kind == "embedding"):
            found.setdefault(id(module), (path, module))
    return list(found.values())
