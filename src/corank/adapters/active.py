"""Which of a model's adapters act."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import SiteError
from ..models import Site, densify, give_back, install, module_at
from ..operators import Adapted, Dense, Foreign, Selection
from .own import require_apart, switch
from .record import adapted, adapters, find_adapter


def activate(model: nn.Module, weights: str | Sequence[str] | Mapping[str, float]) -> None:
    """Let these adapters act, and no others.

    weights: a name, several, or name -> weight. The model then computes W + sum of weight_i
    (W_i - W) at every site, exactly. The leaves of the active ones train, those of others do not.
    Raises ValueError for an unknown name.
    """
    wanted = _weights(weights)
    require_apart(find_adapter(model, name) for name in wanted)
    for weight in adapted(model).values():
        weight.activate(wanted)
    for held in adapters(model).values():
        switch(model, held, on=False)
    for name, held in adapters(model).items():
        switch(model, held, on=name in wanted)
        train(model, name, name in wanted)


def active(model: nn.Module) -> dict[str, float]:
    """The adapters that act, with their weights."""
    found: dict[str, float] = {}
    for weight in adapted(model).values():
        found |= {n: w for n, w in zip(weight.names, weight.weights, strict=True) if w != 0}
    return found


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """A block in which no adapter acts."""
    there = list(adapted(model).values())
    before = [weight.disabled for weight in there]
    own = [held for held in adapters(model).values() if held.in_place]
    for weight in there:
        weight.disable(True)
    for held in own:
        switch(model, held, on=False)
    try:
        yield
    finally:
        for held in own:
            switch(model, held, on=True)
        for weight, was in zip(there, before, strict=True):
            weight.disable(was)


@contextmanager
def select(model: nn.Module, names: Sequence[str | None]) -> Iterator[None]:
    """A block in which row i of every batch goes through adapter names[i]; None goes through none.

    The batch is the first axis of the model's inputs; tokens that layers get flattened (experts)
    follow their row. Raises ValueError for an unknown name, SiteError for an adapter at a table
    of relative positions, which has no rows.
    """
    for name in {n for n in names if n is not None}:
        if find_adapter(model, name).also:
            raise ValueError(
                f"adapter {name!r} trains parameters of the model itself, which every row shares: "
                "activate it instead"
            )
    there = adapted(model)
    for path, weight in there.items():
        if path.endswith("relative_attention_bias") and {*names} & {*weight.names}:
            raise SiteError(
                path, "its table is looked up once for all rows of a batch",
                "Leave it out of the targets of adapters that are selected by row.",
            )  # fmt: skip
    selection = Selection(names)

    def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
        found = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.ndim]
        if found:
            selection.require_batch(found[0].shape[0])
            selection.inside = True

    def leave(*_: Any) -> None:
        selection.inside = False

    hooks = [
        model.register_forward_pre_hook(enter, with_kwargs=True),
        model.register_forward_hook(leave, always_call=True),
    ]
    for weight in there.values():
        weight.selection = selection
    try:
        yield
    finally:
        for weight in there.values():
            weight.selection = None
        for hook in hooks:
            hook.remove()


def delete(model: nn.Module, name: str) -> None:
    """Take an adapter off the model; a weight left with none becomes the plain module again."""
    held = find_adapter(model, name)
    switch(model, held, on=False)
    for path, weight in adapted(model).items():
        if name in weight.names:
            weight.remove(name)
            if not weight.names and path in held.sites:
                _bare(model, held.sites[path], weight)
    del adapters(model)[name]


def _bare(model: nn.Module, site: Site, weight: Adapted) -> None:
    install(model, site, weight.base)
    operators = [m for m in module_at(model, site).modules() if isinstance(m, Adapted)]
    if isinstance(weight.base, Foreign):
        give_back(model, site)
    elif isinstance(weight.base, Dense) and not operators:
        densify(model, site)


def train(model: nn.Module, name: str, on: bool = True) -> None:
    """Let the leaves of an adapter train that are meant to, or none of them."""
    held = find_adapter(model, name)
    for path, weight in adapted(model).items():
        if name in weight.names:
            for leaf_name in held.trains.get(path, ()):
                weight.adapter(name).get_parameter(leaf_name).requires_grad_(on)
    for parameter_name in held.also:
        model.get_parameter(parameter_name).requires_grad_(on)


def _weights(wanted: str | Sequence[str] | Mapping[str, float]) -> dict[str, float]:
    if isinstance(wanted, str):
        return {wanted: 1.0}
    if isinstance(wanted, Mapping):
        return {name: float(weight) for name, weight in wanted.items()}
    return dict.fromkeys(wanted, 1.0)
