"""What reaches each fused expert, and what to do for one that few tokens reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SiteError
from ..layers.experts import gated, routed
from ..models import Site

_MIXED = (
    "gram", "mean", "abs_mean", "square_mean", "output_gram", "original_cross", "original_mean"
)  # fmt: skip


_CHUNK = 256  # tokens that all experts answer at once


@dataclass(frozen=True)
class Routing:
    """How tokens were sent to the experts of one module: the arguments of its forward."""

    hidden_states: Tensor  # (tokens, hidden)
    top_k_index: Tensor  # (tokens, k)

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Routing:
        names = ("hidden_states", "top_k_index")
        found = dict(zip(names, args, strict=False)) | {n: kwargs[n] for n in names if n in kwargs}
        return cls(found["hidden_states"], found["top_k_index"])


def project(module: nn.Module, projection: str, expert: int, x: Tensor) -> Tensor:
    """One expert's gate_up_proj or down_proj at x (rows, in), stored or as an operator."""
    weight = getattr(module, projection)[expert]
    return F.linear(x, weight) if isinstance(weight, Tensor) else weight(x)


def expert_inputs(
    module: nn.Module, routing: Routing, keep: Tensor | None
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """(expert, {projection: rows (R, in)}) for each expert that kept tokens were sent to."""
    index = routing.top_k_index
    if keep is not None:
        index = index.masked_fill(~keep[:, None], count_of(module))  # nobody's
    for expert, token, _ in routed(index, count_of(module)):
        x = routing.hidden_states[token]
        inner = gated(_activation(module), project(module, "gate_up_proj", expert, x))
        yield expert, {"gate_up_proj": x, "down_proj": inner}


@final
class OutputCosines:
    """The mean over tokens of the cosine between the outputs of each two experts of a module.

    Every expert answers every token of the layer, chosen for it or not. An output of zero has the
    cosine zero with all others.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self.total = torch.zeros(count, count, dtype=torch.float64, device=device)
        self.rows = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, module: nn.Module, x: Tensor) -> None:
        """Add tokens x (T, hidden)."""
        for part in x.split(_CHUNK):
            outputs = torch.stack([
                project(module, "down_proj", e, gated(
                    _activation(module), project(module, "gate_up_proj", e, part)
                )) for e in range(len(self.total))
            ])  # fmt: skip
            unit = F.normalize(outputs.float(), dim=2)
            self.total += torch.einsum("eth,fth->ef", unit, unit).to(self.total)
        self.rows += len(x)

    def all_reduce(self) -> None:
        """Sum over the ranks of torch.distributed. Collective."""
        for total in (self.total, self.rows):
            dist.all_reduce(total)

    def results(self) -> Tensor:  # (count, count)
        """The means, float32; one with itself where no token came."""
        if not self.rows:
            return torch.eye(len(self.total), device=self.total.device)
        return (self.total / self.rows).float()


def explicit_forward(
    module: nn.Module, observe: Callable[[str, int, Tensor, int, Tensor, Tensor], Tensor]
) -> Callable[..., Tensor]:
    """A forward for fused experts that shows each projection at work.

    observe(projection, expert, token numbers, tokens in all, x (R, in), y (R, out)) returns the
    y to go on with.
    """

    def forward(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        parts: list[tuple[Tensor, Tensor]] = []
        tokens = hidden_states.shape[0]
        for expert, token, choice in routed(top_k_index, count_of(module)):
            x = hidden_states[token]
            y = project(module, "gate_up_proj", expert, x)
            y = observe("gate_up_proj", expert, token, tokens, x, y)
            inner = gated(_activation(module), y)
            z = project(module, "down_proj", expert, inner)
            z = observe("down_proj", expert, token, tokens, inner, z)
            parts.append((token, z * top_k_weights[token, choice, None]))
        out = hidden_states.new_zeros(hidden_states.shape)
        for token, z in parts:
            out = out.index_add(0, token, z.to(out.dtype))
        return out

    return forward


def _activation(module: nn.Module) -> Callable[[Tensor], Tensor]:
    return module.act_fn  # type: ignore[return-value]


def count_of(module: nn.Module) -> int:
    """How many experts a fused module holds."""
    return len(module.gate_up_proj)  # type: ignore[arg-type]


def fill_up(sites: list[Site], notes: list[str]) -> None:
    """Mix the pooled statistics of a layer's experts into those of experts that saw few tokens.

    Few is fewer rows N than the input has features n, when the Gram cannot have full rank. Such an
    expert's means become (N own + (n - N) pooled) / n, where pooled is the mean over all rows of
    the same projection's collected experts, and its "abs_max" the largest of theirs. "tokens" stays
    N; "fisher", "gradient" stay as found.

    Raises: SiteError if no token reached any of the collected experts of a module.
    """
    groups: dict[tuple[str, str], list[Site]] = {}
    for site in sites:
        if site.kind == "expert":
            groups.setdefault(site.expert[:2], []).append(site)
    for (path, projection), group in groups.items():
        seen = {site.name: float(site.stats["tokens"]) for site in group}
        total = sum(seen.values())
        if total == 0:
            raise SiteError(
                f"{path}.{projection}", "no calibration token reached these experts",
                "Calibrate on more data or take them out of the targets",
            )  # fmt: skip
        few = [site for site in group if seen[site.name] < site.shape[1]]
        names = [name for name in _MIXED if any(name in site.stats for site in group)]
        pooled: dict[str, Tensor] = {}
        for name in names if few else ():
            shares = [s.stats[name] * (seen[s.name] / total) for s in group if seen[s.name]]
            pooled[name] = sum(shares[1:], shares[0])
        maxima = [s.stats["abs_max"] for s in group if "abs_max" in s.stats]
        for site in few:
            if maxima:
                site.stats["abs_max"] = torch.stack(maxima).amax(0)
            own = seen[site.name] / site.shape[1]
            for name in names:
                mixed = pooled[name] * (1 - own)
                site.stats[name] = mixed + site.stats[name] * own if own else mixed
        if few:
            listed = ", ".join(f"{s.expert[2]} ({seen[s.name]:.0f})" for s in few)
            notes.append(
                f"{path}.{projection}: fewer than {group[0].shape[1]} tokens reached the experts "
                f"(tokens) {listed}; the layer's pooled statistics were mixed into theirs"
            )
