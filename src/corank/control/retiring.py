"""Taking leaves out of training for good."""

from __future__ import annotations

from collections.abc import Iterable

from .control import Training


def freeze(training: Training, names: Iterable[str]) -> None:
    """Let these leaves of `training.leaves()` train no more, and remember it."""
    training.memory["retired"] = [*training.memory.get("retired", []), *names]
    keep_frozen(training)


def keep_frozen(training: Training) -> None:
    """Freeze again what was frozen: after a resume, or after the adapter was activated again."""
    leaves = training.leaves()
    for name in training.memory.get("retired", []):
        if name in leaves:
            leaves[name].requires_grad_(False)
            leaves[name].grad = None
