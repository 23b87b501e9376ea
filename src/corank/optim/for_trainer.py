"""An optimiser for transformers' Trainer."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import unknown
from ..models import Targets
from .groups import groups, sparing_vectors
from .stepping import LowRankOptimizer


def for_trainer(
    kind: str | type[LowRankOptimizer],
    model: nn.Module,
    arguments: Any,
    targets: Targets = "all-linear",
    **options: Any,
) -> tuple[type[LowRankOptimizer], dict[str, Any]]:
    """What `transformers.Trainer(model, arguments, optimizer_cls_and_kwargs=...)` takes.

    kind: a class of `corank.optim`, or the key of its method. arguments: `TrainingArguments`, whose
        learning rate, weight decay, betas and epsilon are honoured; the decay spares parameters
        of one dimension (biases and norms). targets: what is projected.
    options: the method's own, such as rank, and others of the class; they go before `arguments`.

    Raises ValueError for an unknown kind or options that do not hold.
    """
    if isinstance(kind, str):
        kinds = {known.key: known for known in LowRankOptimizer.__subclasses__()}
        if kind not in kinds:
            raise unknown("optimiser", kind, kinds)
        kind = kinds[kind]
    usual = {
        "lr": arguments.learning_rate,
        "betas": (arguments.adam_beta1, arguments.adam_beta2),
        "eps": arguments.adam_epsilon,
    }
    decay = options.pop("weight_decay", arguments.weight_decay)
    made = sparing_vectors(groups(model, targets), decay)
    chosen = usual | options
    kind([group | {"params": list(group["params"])} for group in made], **chosen)  # or raise here
    return kind, {"params": made, **chosen}
