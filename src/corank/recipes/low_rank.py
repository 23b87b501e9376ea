"""W -> b a: one solver; a metric, an allocation and a grouping for each paper."""

from __future__ import annotations

from ..metrics import activation_scale, euclidean, fisher_rows, second_moment, two_sided
from ..registry import Paper, Recipe, method
from ..rewrites import by_site, truncation
from .grouping import consecutive_layers

OPTIMAL = ("compresses", "optimal")


@method(
    Paper("Truncated SVD", "", "Eckart and Young, Psychometrika 1 (1936), 211-218"),
    area="compress",
    laws=OPTIMAL,
)
def svd() -> Recipe:
    """The nearest matrix of lower rank in the Frobenius norm; needs no data."""
    return Recipe(truncation(euclidean()))


@method(
    Paper(
        "Language model compression with weighted low-rank factorization (FWSVD)",
        "2207.00112",
        "section 3: SVD of D W, D the square roots of the Fisher information summed over a row",
        "which axis of an nn.Linear weight a row is was not found; ports differ, so it is `axis`; "
        "gradients are squared per sample, not per batch",
    ),
    area="compress",
    laws=OPTIMAL,
)
def fwsvd(axis: str = "out") -> Recipe:
    """Rows (`axis="out"`) or columns ("in") weighted by their summed Fisher information."""
    return Recipe(truncation(fisher_rows(axis)))


@method(
    Paper(
        "ASVD: Activation-aware Singular Value Decomposition",
        "2312.05821",
        "equations 7 and 8",
        "the rank search by perplexity (section 3.4) is left to `allocate`",
    ),
    area="compress",
    laws=OPTIMAL,
)
def asvd(alpha: float = 0.5) -> Recipe:
    """Columns scaled by the mean absolute activation to the power `alpha` >= 0 (paper: 0.5)."""
    return Recipe(truncation(activation_scale(alpha)))


@method(
    Paper(
        "SVD-LLM: Truncation-aware Singular Value Decomposition",
        "2403.07378",
        "section 3.1, theorem 3.2",
        "the same minimiser in projection form, U U^T W, so no Cholesky factor is inverted; "
        "the sequential LoRA update of section 3.2 is left to healing",
    ),
    area="compress",
    laws=OPTIMAL,
)
def svd_llm(ridge: float = 0.0) -> Recipe:
    """The best low-rank outputs on the calibration inputs: the metric of their second moment."""
    return Recipe(truncation(second_moment(ridge)))


@method(
    Paper(
        "SVD-LLM V2: Optimizing Singular Value Truncation",
        "2503.12340",
        "algorithms 1 and 2",
        "log(e + loss) for log(loss), which changes sign below one; shares clipped to [0, 1]",
    ),
    area="compress",
    laws=OPTIMAL,
)
def svd_llm_v2(ridge: float = 0.0) -> Recipe:
    """SVD-LLM's minimiser; within a type of matrix, ratios by the inverse log of the loss."""
    return Recipe(truncation(second_moment(ridge)), allocate="svd_llm_v2")


@method(
    Paper(
        "Advancing SVD-based LLM Compression via Layer-Wise Error Model Search (KFAC-SVD)",
        "",
        "OpenReview IjIgNPFuCt: statistics of single tokens, shrinkage of both sides",
        "the symmetric root of the output moment, where the published code has a Cholesky factor "
        "on the wrong side; gradients are neither trimmed by position nor clipped",
    ),
    area="compress",
    laws=OPTIMAL,
)
def kfac_svd(shrink: float = 0.1, shrink_output: float = 0.3) -> Recipe:
    """Errors weighed by the inputs' and by the output gradients' second moments.

    `shrink` and `shrink_output`, in [0, 1), mix each moment with its mean diagonal (paper: 0.1,
    0.3 for language models, 0.7 on the output side for vision).
    """
    for name, share in (("shrink", shrink), ("shrink_output", shrink_output)):
        if not 0 <= share < 1:
            raise ValueError(f"{name}={share} is outside [0, 1)")
    return Recipe(truncation(two_sided(shrink / (1 - shrink), shrink_output / (1 - shrink_output))))


@method(
    Paper(
        "From GaLore to WeLore: How Low-Rank Weights Non-uniformly Emerge",
        "2407.11239",
        "one threshold on the singular values scaled to [0, 1]; low-rank components train",
        "the threshold is searched to meet the budget; a matrix stays dense where its factors "
        "would store more, which is the paper's rule of half the rank for square matrices",
    ),
    area="compress",
    laws=OPTIMAL,
)
def welore() -> Recipe:
    """Non-uniform ranks by a common heavy-tail threshold; only the factors stay trainable."""
    return Recipe(truncation(euclidean()), allocate="heavy_tail", trains="factors")


@method(
    Paper(
        "Basis Sharing: Cross-Layer Parameter Sharing for Large Language Model Compression",
        "2410.03765",
        "section 3: SVD of the group's weights side by side under their summed second moment",
        "the coefficients are not refitted on the compressed model's inputs",
    ),
    area="compress",
    laws=("compresses",),
)
def basis_sharing(layers: int = 2, ridge: float = 0.0) -> Recipe:
    """`layers` >= 1 consecutive layers share the input-side factor of q, k, v, up and gate."""
    return Recipe(truncation(second_moment(ridge)), group=consecutive_layers(layers))


@method(
    Paper(
        "corank's own composition: two-sided metric, least-squares targets, greedy ranks",
        "",
        "the parts are KFAC-SVD's metric, the original model's outputs as targets for the "
        "compressed model's inputs, and marginal loss per parameter; see the compression page",
    ),
    area="compress",
    laws=OPTIMAL,
)
def corank(ridge: float = 0.0, output_ridge: float = 1e-2) -> Recipe:
    """Our composition for use without training: loss-aware metric, ranks and targets.

    Output gradients make errors comparable across sites, ranks go where they save most loss, and
    each site in turn is refitted to the original's outputs. Biases that are there move along.
    """
    plain, centred = (truncation(two_sided(ridge, output_ridge, c)) for c in (False, True))
    family = by_site(lambda site: centred if site.bias else plain, plain, centred)
    return Recipe(family, allocate="greedy_floor", cascade="original")
