"""One round of a federation, its clients being models in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from ..adapters.record import adapted, find_adapter


@torch.no_grad()
def fedsa_lora(
    clients: Sequence[nn.Module],
    name: str = "default",
    weights: Sequence[float] | None = None,
    share: Sequence[str] = ("a",),
) -> int:
    """Average what the clients' adapters share, the right factors; the left ones stay their own.

    clients: models with the same adapter `name`, each trained on its own data since the last
    round. weights: of the clients in the mean, such as their numbers of samples; None: equal.
    share: last names of the leaves that are averaged. Returns how many numbers each client sent.
    Raises ValueError for clients that do not hold the same leaves.
    """
    if not clients:
        raise ValueError("clients is empty: a federation has at least one")
    shares = _normalised(weights, len(clients))
    held = [dict(_shared(client, name, share)) for client in clients]
    first = {key: leaf.shape for key, leaf in held[0].items()}
    for number, leaves in enumerate(held):
        if {key: leaf.shape for key, leaf in leaves.items()} != first:
            raise ValueError(
                f"client {number} does not hold the leaves {', '.join(share)} of client 0: give "
                "all clients the same adapter of the same ranks"
            )
    if not first:
        raise ValueError(f"adapter {name!r} trains no leaf called {' or '.join(share)}")
    for key, leaf in held[0].items():
        mean = torch.zeros_like(leaf, dtype=torch.promote_types(leaf.dtype, torch.float32))
        for leaves, part in zip(held, shares, strict=True):
            mean += part * leaves[key].to(mean)
        for leaves in held:
            leaves[key].copy_(mean.to(leaves[key]))
    return sum(shape.numel() for shape in first.values())


def _shared(
    client: nn.Module, name: str, share: Sequence[str]
) -> Iterator[tuple[str, nn.Parameter]]:
    held = find_adapter(client, name)
    for path, weight in adapted(client).items():
        for leaf in held.trains.get(path, ()):
            if name in weight.names and leaf.rpartition(".")[2] in share:
                yield f"{path}/{leaf}", weight.adapter(name).get_parameter(leaf)


def _normalised(weights: Sequence[float] | None, count: int) -> list[float]:
    given = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if len(given) != count or min(given) < 0 or sum(given) <= 0:
        raise ValueError(f"weights={weights}: one for each of {count} clients, not negative")
    return [weight / sum(given) for weight in given]
