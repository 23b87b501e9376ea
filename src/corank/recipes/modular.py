"""Fewer inner dimensions in the weights that share them, which pays no tax for a second factor."""

from __future__ import annotations

from collections.abc import Sequence

from ..metrics import activation_scale, second_moment
from ..models import Site, modules, modules_and_mixers
from ..models.roles import MLP
from ..registry import Paper, Recipe, method
from ..rewrites import (
    Family,
    by_leverage,
    by_magnitude,
    by_site,
    narrowing,
    shared_values,
    shorter_states,
    truncation,
)


@method(
    Paper(
        "MoDeGPT: Modular Decomposition for Large Language Model Compression",
        "2408.09632",
        "Nystrom for gate, up and down, CR for q and k, SVD for v and o, and the entropic "
        "allocation, as noted from the paper and read in a port; the body was not read",
        "the ridge of the leverage scores, an input of the paper's algorithm of which no value was "
        "found, is the moment's mean eigenvalue: a small one drops channels that are huge on rare "
        "tokens, since others tell them; the refitted down has one of 1e-6; moments of q and k are "
        "those before they are turned, averaged within a rotary pair; biases of q and k stay "
        "whole, that of v goes into o's; heads of queries that share values are fitted together; "
        "weights outside the modules, and those whose partners are not targeted, lose inputs or "
        "outputs of their own; fused q, k, v and normalised q and k stay whole",
    ),
    area="compress",
    laws=("narrows",),
)
def modegpt(ridge: float = 1.0) -> Recipe:
    """Fewer channels in the MLP and fewer dimensions in each head, by what the modules give out.

    ridge: of the leverage scores by which channels of the MLP are kept, above 0, over the mean
        eigenvalue of their moment. A small one drops channels that are huge on rare tokens.
    """
    return Recipe(_cut(ridge, refit=True, of_outputs=True), modules, allocate="block_influence")


@method(
    Paper(
        "UniQL: Unified Quantization and Low-rank Compression for Adaptive Edge LLMs",
        "2512.03383",
        "the abstract and the authors' code; the body was not read: leverage scores and plain "
        "slicing for the MLP, norms of rotary pairs for q and k, principal directions of the "
        "values with their size in v; of Mamba-2's mixers the dimensions of the state by the norms "
        "of C and of dt B, the channels of the heads by leverage scores of the chunks' states; "
        "rates by softmax of the blocks' influence, at most 0.85 removed",
        "the masked training and the quantiser are left out; as in modegpt the ridge is the mean "
        "eigenvalue, in the code 1e-4 of a moment that is not divided by its tokens, "
        "the moments of q and k those before they are turned, and weights without a partner lose "
        "inputs or outputs of their own; without sharing of values too the directions are the "
        "values', not the outputs'. Mixers: B is weighed by dt as the recurrence uses it, in the "
        "code before its bias and softplus; states and heads lose exactly the same share, in the "
        "code each rounded to a multiple; the gated norm takes what is gone as zeros, in the code "
        "it averages over the rest; convolution, norm and cached state keep their shapes; mixers "
        "with multipliers or a norm before the gate count as weights without a partner",
    ),
    area="compress",
    laws=("narrows",),
)
def uniql(ridge: float = 1.0) -> Recipe:
    """Channels and dimensions sorted by importance, of which the first ones stay.

    ridge: of the leverage scores by which channels of the MLP and of mixers are sorted, above 0,
        over the mean eigenvalue of their moment.
    """
    inside = _cut(ridge, refit=False, of_outputs=False)
    mixers = shorter_states(second_moment(), ridge, inside)
    family = by_site(lambda site: mixers if site.mixer else inside.of(site), mixers, inside)
    return Recipe(family, modules_and_mixers, allocate="uniql")


def _cut(ridge: float, refit: bool, of_outputs: bool) -> Family:
    if not ridge > 0:
        raise ValueError(f"ridge={ridge}: leverage scores need a ridge above 0")
    moment = second_moment()
    channels = narrowing(moment, by_leverage(moment, ridge), refit)
    values = shared_values(moment, channels, of_outputs)
    return by_site(lambda site: values if site.role == "v" else channels, values, channels)


@method(
    Paper(
        "LoRAP: Transformer Sub-Layers Deserve Differentiated Structured Compression for Large "
        "Language Models",
        "2404.09695",
        "the authors' code: weighted SVD of q, k, v and o with three times the share for v and o; "
        "channels of the MLP by the summed norms of their weighted rows and columns",
        "all layers are compressed at once unless cascade is given; other weights than the "
        "attention's and the MLP's are cut as the attention's are",
    ),
    area="compress",
    laws=("compresses", "optimal"),
)
def lorap(least: float = 0.01) -> Recipe:
    """Low rank for the attention, fewer channels for the MLP, inputs weighed by their size.

    least: share in [0, 1) of the MLP's channels, the least important ones, that always stays.
    """
    if not 0 <= least < 1:
        raise ValueError(f"least={least} is outside [0, 1)")
    sizes = activation_scale(1.0, of="rms")
    low_rank = truncation(sizes)
    channels = narrowing(sizes, by_magnitude(sizes), least=least)

    def choose(site: Site) -> Family:
        return channels if site.role in MLP else low_rank

    return Recipe(by_site(choose, channels, low_rank), _mlp_together, allocate="lorap")


def _mlp_together(sites: Sequence[Site]) -> list[list[Site]]:
    groups = modules(sites)
    return [
        part
        for group in groups
        for part in ([group] if group[-1].role in MLP else [[site] for site in group])
    ]
