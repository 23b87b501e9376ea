"""What state-space mixers write into their states, and read from them."""

from __future__ import annotations

from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from ..linalg import GramAccumulator
from ..models import Mixer

#: What only the in_proj of a known mixer has.
STATE_NEEDS = frozenset({"state_gram", "state_scores"})


@final
class StateStatistics:
    """Sums over the tokens of one mixer, H_t = exp(A dt_t) H_(t-1) + dt_t x_t B_t^T in each head.

    scores: sqrt(E C_n^2) sum_h sqrt(E (dt_h B_n)^2) for each dimension n of the state of each group
    of heads, h being those heads. gram: E[r r^T], the rows r (inner,) being what one chunk of
    tokens adds to the states of all heads, as it is at the chunk's end, for each n.
    """

    def __init__(self, mixer: Mixer, device: torch.device) -> None:
        self.mixer = mixer
        self.gram = GramAccumulator(mixer.inner, device)
        self.written = torch.zeros(
            mixer.groups, mixer.heads // mixer.groups, mixer.state,
            dtype=torch.float64, device=device,
        )  # fmt: skip
        self.read = torch.zeros(mixer.groups, mixer.state, dtype=torch.float64, device=device)
        self.tokens = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, module: Any, made: Tensor, mask: Tensor | None) -> None:
        """Add what in_proj made (samples, length, rows); mask (samples, length): no padding."""
        keep = None if mask is None or mask.shape != made.shape[:2] else mask.to(made.device)
        x, b, c, dt = self._inputs(module, made, keep)
        self.read += c.square().sum((0, 1))
        self.written += torch.einsum("blgi,blgn->gin", dt.square(), b.square())
        self.tokens += made.shape[0] * made.shape[1] if keep is None else keep.sum()
        rate = -module.A_log.float().exp().view(self.mixer.groups, -1)
        for start in range(0, made.shape[1], module.chunk_size):
            chunk = slice(start, start + module.chunk_size)
            steps = dt[:, chunk]
            passed = (rate * steps).cumsum(1)
            left = (passed[:, -1:] - passed).exp() * steps
            states = torch.einsum("blgi,blgip,blgn->bngip", left, x[:, chunk], b[:, chunk])
            self.gram.add(states.flatten(2).flatten(0, 1))

    def _inputs(
        self, module: Any, made: Tensor, keep: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (samples, length, groups, heads, head_dim), B and C (.., groups, state) and dt."""
        mixer, conv, length = self.mixer, module.conv1d, made.shape[1]
        mixed = made[..., mixer.convolved].mT.to(conv.weight.dtype)
        padding = conv.weight.shape[-1] - 1
        mixed = F.conv1d(mixed, conv.weight, conv.bias, padding=padding, groups=conv.groups)
        mixed = module.act(mixed[..., :length].mT).float()
        dt = F.softplus(made[..., mixer.convolved.stop :].float() + module.dt_bias.float())
        dt = dt.clamp(*module.time_step_limit)
        if keep is not None:
            mixed, dt = mixed * keep[..., None], dt * keep[..., None]
        x, b, c = mixed.split([mixer.inner, mixer.states, mixer.states], -1)
        by_group = (mixer.groups, -1)
        x = x.unflatten(-1, (mixer.groups, -1, mixer.head_dim))
        b, c, dt = (part.unflatten(-1, by_group) for part in (b, c, dt))
        return x, b, c, dt

    def all_reduce(self) -> None:
        """Sum over the ranks of torch.distributed. Collective."""
        for total in (self.written, self.read, self.tokens):
            dist.all_reduce(total)
        self.gram.all_reduce()

    def results(self) -> dict[str, Tensor]:
        """ "state_scores" (groups * state,) and "state_gram" (inner, inner), float32."""
        written = (self.written / self.tokens).sqrt().sum(1)
        scores = (self.read / self.tokens).sqrt() * written
        return {
            "state_scores": scores.flatten().float(), "state_gram": self.gram.second_moment(),
        }  # fmt: skip
