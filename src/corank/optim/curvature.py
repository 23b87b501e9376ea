"""MKOR and SINGD: gradients between two factors of the inverse curvature of their layer."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..errors import unknown
from ..registry import Paper, method
from .inner import momentum
from .refreshing import require_at_least
from .transform import Now, State, Transform, chain

_LAWS = ("watching",)


def without_rank_one(inverse: Tensor, v: Tensor, keep: float) -> Tensor:
    """The inverse of keep F + (1 - keep) v v^T, from the inverse of F (n, n): Sherman-Morrison."""
    pulled = inverse @ v
    part = (1 - keep) / (keep + (1 - keep) * (v @ pulled))
    return (inverse - part * torch.outer(pulled, pulled)) / keep


def _require_share(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be in [0, 1), got {value!r}")


@method(
    Paper(
        "MKOR: Momentum-Enabled Kronecker-Factor-Based Optimizer Using Rank-1 Updates",
        "2306.01685",
        "the authors' code for what is seen, the interval, the blend back to I and the rescaling "
        "(abstract; the sections were not read)",
        "the rank-1 step is the exact inverse of the moving average keep F + (1 - keep) v v^T; "
        "the output's gradients are summed over tokens, which are means where the loss is one; "
        "the update is as long as the gradient of the weight alone, without the bias; factors are "
        "kept in the state's type; a factor is blended half and half with I; the fall-back to a "
        "first-order optimiser is left out",
    ),
    area="optimize",
    laws=_LAWS,
)
def mkor(every: int = 10, keep: float = 0.95, ceiling: float = 2.0) -> Transform:
    """The gradient between inverse factors that take one rank-1 step at a time, then momentum.

    every: steps from one update of the factors to the next. keep: of the moving averages.
    ceiling: a factor with an entry above it is averaged with I.
    Give the optimiser the model: it looks at its layers. The factors of a weight that is not an
    nn.Linear's stay I.
    """
    require_at_least(1, every=every)
    _require_share(keep=keep)

    def start(like: Tensor) -> State:
        _require_matrix(like, "MKOR")
        m, n = like.shape
        return {"inverse_out": _eye(m, like), "inverse_in": _eye(n, like)}

    def watch(x: Tensor, dy: Tensor) -> State:
        return {"in": x.mean(0).clamp(-100, 100), "out": dy.sum(0).clamp(-100, 100)}

    def update(g: Tensor, state: State, now: Now) -> tuple[Tensor, State]:
        found = {}
        for side in ("out", "in"):
            inverse = state[f"inverse_{side}"].to(g.dtype)
            if (now.step - 1) % every == 0 and side in now.seen:
                inverse = without_rank_one(inverse, now.seen[side].to(g.dtype), keep)
                blended = (inverse + _eye(len(inverse), inverse)) / 2
                inverse = torch.where(inverse.abs().amax() > ceiling, blended, inverse)
            found[side] = inverse
        out = found["out"] @ g @ found["in"]
        out = out * (g.norm() / out.norm().clamp(min=torch.finfo(out.dtype).tiny))
        kept = {f"inverse_{s}": f.to(state[f"inverse_{s}"].dtype) for s, f in found.items()}
        return out, state | kept

    return chain(Transform(start, update, watch=watch), momentum())


@method(
    Paper(
        "Simplifying Momentum-based Positive-definite Submanifold Optimization with Applications "
        "to Deep Learning",
        "2302.09738",
        "the inverse-free update of the two factors, with the authors' later code (SINGD, "
        "2312.05705) for structures, defaults and the truncated exponential",
        "dense and diagonal structures only; the first moment is an average, corrected for its "
        "start; the loss is taken as a mean over tokens",
    ),
    area="optimize",
    laws=_LAWS,
)
def singd(
    every: int = 10,
    structure: Literal["dense", "diagonal"] = "dense",
    rate: float = 1e-2,
    keep: float = 0.5,
    damping: float = 1e-3,
) -> Transform:
    """The gradient between K K^T and C C^T, which follow the inverse curvature without inverses.

    every: steps from one update of K and C to the next; rate: its length; keep: its momentum.
    damping: added to the curvature. structure: of K and C.
    Give the optimiser the model: it looks at its layers. The factors of a weight that is not an
    nn.Linear's stay I. The curvature is that of the loss which is propagated back: one that a
    GradScaler scales distorts it.
    """
    if structure not in ("dense", "diagonal"):
        raise unknown("structure", structure, ("dense", "diagonal"))
    require_at_least(1, every=every)
    require_at_least(0, rate=rate, damping=damping)
    _require_share(keep=keep)
    dense = structure == "dense"

    def start(like: Tensor) -> State:
        _require_matrix(like, "SINGD")
        state: State = {}
        for side, size in zip(("out", "in"), like.shape, strict=True):
            factor = _eye(size, like) if dense else like.new_ones(size)
            state |= {f"factor_{side}": factor, f"trend_{side}": torch.zeros_like(factor)}
        return state

    def moment(rows: Tensor, count: int) -> Tensor:
        return rows.mT @ rows / count if dense else rows.square().sum(0) / count

    def watch(x: Tensor, dy: Tensor) -> State:
        tokens = len(x)  # the gradients of a mean over tokens carry 1 / tokens each
        return {"in": moment(x, tokens), "out": moment(dy * tokens, tokens)}

    def pulled(factor: Tensor, seen: Tensor) -> Tensor:
        return factor.mT @ seen @ factor if dense else factor.square() * seen

    def mean_trace(t: Tensor) -> Tensor:
        return t.diagonal().mean() if dense else t.mean()

    def followed(state: State, seen: State, dtype: torch.dtype) -> State:
        factor = {s: state[f"factor_{s}"].to(dtype) for s in ("out", "in")}
        curved = {s: pulled(f, seen[s].to(dtype)) for s, f in factor.items()}
        plain = {s: f.mT @ f if dense else f.square() for s, f in factor.items()}
        found: State = {}
        for side, other in (("out", "in"), ("in", "out")):
            slope = mean_trace(curved[other]) * curved[side]
            slope = slope + damping * mean_trace(plain[other]) * plain[side]
            eye = _eye(len(slope), slope) if dense else 1.0
            trend = keep * state[f"trend_{side}"].to(dtype) + 0.5 * (slope - eye)
            step = factor[side] @ trend if dense else factor[side] * trend
            found |= {f"factor_{side}": factor[side] - rate * step, f"trend_{side}": trend}
        return {name: t.to(state[name].dtype) for name, t in found.items()}

    def update(g: Tensor, state: State, now: Now) -> tuple[Tensor, State]:
        if now.seen and (now.step - 1) % every == 0:
            state = state | followed(state, now.seen, g.dtype)
        c, k = (state[f"factor_{side}"].to(g.dtype) for side in ("out", "in"))
        if dense:
            return c @ (c.mT @ g @ k) @ k.mT, state
        return c.square()[:, None] * g * k.square(), state

    return chain(Transform(start, update, watch=watch), momentum())


def _eye(size: int, like: Tensor) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)


def _require_matrix(like: Tensor, name: str) -> None:
    if like.ndim != 2:
        raise ValueError(
            f"{name} takes matrices, and a weight is {tuple(like.shape)}: project=False"
        )
