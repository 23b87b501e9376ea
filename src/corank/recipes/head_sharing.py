"""Attention heads that share their weights."""

from __future__ import annotations

from ..registry import Paper, Recipe, method
from ..rewrites import head_sharing
from .grouping import attentions_of_a_kind


@method(
    Paper(
        "Head-wise Shareable Attention for Large Language Models",
        "2402.11819",
        "DirectShare, by the abstract and the authors' code; the sections were not read",
        "PostShare's training with a penalty is left out. A head whose match is itself given up "
        "takes the nearest head that stays; in the code that match keeps its weights, so that "
        "fewer are shared than asked for. Where several heads of queries read one of keys, they go "
        "with it. Biases stay each head's own.",
    ),
    area="compress",
    laws=("shares_heads",),
)
def directshare(head_size: int | None = None) -> Recipe:
    """The most similar attention heads take the weights of heads in earlier layers; no data.

    The size is how many heads keep their own weights, over all layers: the first layer's do.
    q, k, v and o are shared as far as they are targeted. head_size: the head dimension, where
    the model does not say it.
    """
    if head_size is not None and head_size < 1:
        raise ValueError(f"head_size={head_size} is at least 1: the model's head dimension")
    return Recipe(head_sharing(head_size), group=attentions_of_a_kind)
