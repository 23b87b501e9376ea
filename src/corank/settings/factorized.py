"""Feed-forward networks factored into experts that a router chooses among."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..calibration import Batches, batches
from ..calibration.data import to_device
from ..calibration.rows import Masks, first_input, kept
from ..calibration.running import call, device_of, untouched
from ..engine.transaction import unchanged_on_error
from ..errors import SiteError
from ..io import attach
from ..models import Site, channels, find_sites, install, read
from ..operators import Dense, Operator, RoutedRows


@dataclass(frozen=True)
class _Network:
    """A gated feed-forward network: down (act(gate x) * up x)."""

    path: str
    gate: Site
    up: Site
    down: Site
    act: Callable[[Tensor], Tensor]


def factorllm(
    model: nn.Module,
    data: Any,
    *,
    experts: int = 4,
    top_k: int | None = None,
    steps: int = 200,
    rate: float = 1e-2,
    rows: int = 4096,
) -> dict[str, float]:
    """Factor every gated feed-forward network into `experts` equal ones, in place.

    Expert i is the i-th run of inner channels. A token goes through the `top_k` (default half of
    them) that a linear router scores best, and the sum of their outputs is multiplied by experts /
    top_k. Routers learn the prior, by Adam on up to `rows` inputs of each network in `data`:
    softmax(router) towards softmax of the 0/1 choice of the top_k experts whose output is nearest
    to top_k / experts of the whole one's, in the KL divergence of the first to the second. The
    weights stay as they were: all experts together are the original. Nothing gets smaller, gate and
    up take top_k / experts of their time; train on with corank.heal.

    Returns, by network, the part of its tokens' chosen experts that are in the prior.
    Raises SiteError for a bias in up or an inner width that `experts` does not divide; ValueError
    for other numbers, and where there is no such network. The model is unchanged on an error.
    """
    top_k = max(1, experts // 2) if top_k is None else top_k
    if not 1 <= top_k <= experts or min(steps, rows) < 1:
        raise ValueError(
            f"top_k={top_k} is outside 1 to experts={experts}, or steps={steps}, rows={rows} "
            "below 1"
        )
    networks = _networks(model, experts)
    sites = [site for one in networks for site in (one.gate, one.up)]
    found: dict[str, float] = {}
    inputs = _inputs(model, networks, batches(data), rows)
    with unchanged_on_error(model, sites):
        for one in networks:
            prior = _prior(model, one, inputs[one.path], experts, top_k)
            weight = _learn(inputs[one.path].float(), prior, top_k, steps, rate)
            chosen = _top(F.linear(inputs[one.path].float(), weight), top_k)
            found[one.path] = float((chosen * prior).sum() / chosen.sum())
            router = nn.Parameter(weight.to(read(model, one.up).dtype), requires_grad=False)
            for site, scale in ((one.gate, 1.0), (one.up, experts / top_k)):
                runs = _runs(read(model, site), experts)
                routed = RoutedRows(*runs, router=Dense(router), top_k=top_k, scale=scale)
                install(model, site, routed)
    attach(model)
    return found


def _networks(model: nn.Module, experts: int) -> list[_Network]:
    found = []
    for one in channels(find_sites(model, "mlp")):
        makers = {site.role: site for site in one.makers}
        if set(makers) != {"gate", "up"} or len(one.readers) != 1:
            continue
        up, path = makers["up"], one.readers[0].name.rpartition(".")[0]
        act = getattr(model.get_submodule(path), "act_fn", None)
        if act is None:
            continue
        if up.bias or one.width % experts:
            raise SiteError(
                up.where, f"it has a bias, or {experts} experts do not divide its channels",
                "Give another number of experts; a bias would reach experts that were not chosen",
            )  # fmt: skip
        found.append(_Network(path, makers["gate"], up, one.readers[0], act))
    if not found:
        raise ValueError("the model has no feed-forward network of gate, up, act_fn and down")
    return found


@torch.no_grad()
def _inputs(
    model: nn.Module, networks: list[_Network], data: Batches, most: int
) -> dict[str, Tensor]:
    """What each network reads, (rows, in), without padding."""
    found: dict[str, list[Tensor]] = {one.path: [] for one in networks}
    masks = Masks(None, None, False)

    def watch(one: _Network) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = first_input(args, kwargs).detach()
            keep = kept(x.shape[:-1], masks.at(one.up))
            x = x.reshape(-1, x.shape[-1])
            room = most - sum(map(len, found[one.path]))
            found[one.path].append((x if keep is None else x[keep])[:room])

        return hook

    handles = [
        model.get_submodule(one.up.name).register_forward_pre_hook(watch(one), with_kwargs=True)
        for one in networks
    ]
    try:
        with untouched(model):
            for batch in data:
                masks = Masks.of(model, batch)
                call(model, to_device(batch, device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    return {path: torch.cat(parts) for path, parts in found.items()}


def _runs(op: Operator, experts: int) -> list[Operator]:
    trains = any(leaf.requires_grad for leaf in op.parameters())
    return [
        Dense(nn.Parameter(run.clone(), requires_grad=trains))
        for run in op.dense().detach().chunk(experts)
    ]


@torch.no_grad()
def _prior(model: nn.Module, one: _Network, x: Tensor, experts: int, top_k: int) -> Tensor:
    """Which experts' outputs are nearest to top_k / experts of the whole one's, (rows, experts)."""
    gate, up, down = (read(model, site).dense().detach() for site in (one.gate, one.up, one.down))
    inner = (one.act(F.linear(x, gate)) * F.linear(x, up)).unflatten(1, (experts, -1))
    outputs = torch.einsum("tec,oec->teo", inner, down.unflatten(1, (experts, -1)))
    whole = outputs.sum(1, keepdim=True) * (top_k / experts)
    return _top(-(outputs - whole).float().square().sum(2), top_k)


def _top(scores: Tensor, top_k: int) -> Tensor:
    """One where a score is among the greatest of its row, else zero."""
    return torch.zeros_like(scores).scatter(1, scores.topk(top_k, 1).indices, 1.0)


@torch.enable_grad()
def _learn(x: Tensor, prior: Tensor, top_k: int, steps: int, rate: float) -> Tensor:
    """A router (experts, in) whose choice is nearest to the prior, of all steps."""
    weight = torch.zeros(prior.shape[1], x.shape[1], device=x.device, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=rate)
    wanted = prior.log_softmax(1)
    best, most = weight.detach().clone(), -1.0
    for step in range(steps + 1):
        scores = F.linear(x, weight)
        agreed = float((_top(scores.detach(), top_k) * prior).sum())
        if agreed > most:
            best, most = weight.detach().clone(), agreed
        if step < steps:
            optimizer.zero_grad()
            chance = scores.log_softmax(1)
            (chance.exp() * (chance - wanted)).sum(1).mean().backward()
            optimizer.step()
    return best
