"""GaLore's kin: other bases, other numbers, other norms."""

from __future__ import annotations

from ..registry import Paper, method
from .bases import BASES, dct, randomized, seeded
from .conjugate import conjugate
from .galore import require_basis
from .inner import adafactor, adam, momentum
from .learned import correlated, online_pca
from .lifting import added, dropped, sparse_rest
from .normalising import by_length_and_direction, subset_normed
from .quantised import int4
from .refreshing import at_most, lazily, require_at_least, shared
from .refreshing import every as each
from .transform import Transform, chain

_LAWS = ("gradient",)
_AS_GALORE = "moments are rotated to a new basis and refreshes staggered, as `galore` does"


@method(
    Paper(
        "GaLore+: Boosting Low-Rank Adaptation for LLMs with Cross-Head Projection",
        "2412.19820",
        "the abstract and a summary: projections shared across heads, randomised subspace "
        "iteration, sparsely coded residuals; equations not read",
        "heads share the basis of all heads' gradients side by side; the residual is Adam's over "
        "the entries that are largest at a refresh, and their share is this project's choice; "
        + _AS_GALORE,
    ),
    area="optimize",
    laws=_LAWS,
)
def galore_plus(
    rank: int = 128,
    every: int = 200,
    scale: float = 0.25,
    heads: int = 1,
    residual: float = 0.01,
    stagger: bool = True,
) -> Transform:
    """GaLore with one basis for all heads of a weight, and Adam on a few entries of the rest.

    heads: of the attention weights, so best set for a group of those; residual: share of entries.
    """
    require_at_least(1, heads=heads)
    if not 0 < residual <= 1:
        raise ValueError(f"residual must be in (0, 1], got {residual!r}")
    due = each(every, stagger)
    basis = shared(randomized(at_most(rank), due))
    return conjugate(adam(), basis, sparse_rest(scale, residual, due))


@method(
    Paper(
        "Q-GaLore: Quantized GaLore with INT4 Projection and Layer-Adaptive Low-Rank Gradients",
        "2407.08296",
        "the INT4 projection and the lazy refresh",
        "weights and moments are not quantised; the cosine's sign does not count; " + _AS_GALORE,
    ),
    area="optimize",
    laws=_LAWS,
)
def qgalore(
    rank: int = 128,
    every: int = 200,
    scale: float = 0.25,
    threshold: float = 0.4,
    basis: str = "randomized",
    stagger: bool = True,
) -> Transform:
    """GaLore with a basis in four bits that is refreshed less often once it has settled."""
    require_basis(basis)
    if basis not in ("svd", "randomized", "random"):
        raise ValueError(f"basis {basis!r} keeps no matrix: choose svd, randomized or random")
    found = BASES[basis](at_most(rank), each(every, stagger))
    return conjugate(adam(), lazily(int4(found), threshold), dropped(scale))


@method(
    Paper(
        "COAP: Memory-Efficient Training with Correlation-Aware Gradient Projection",
        "2412.00071",
        "the two updates of the projection, with the defaults of the authors' class",
        "the moments are rotated to the new projection at each update; refreshes are staggered",
    ),
    area="optimize",
    laws=_LAWS,
)
def coap(
    rank: int = 128, every: int = 64, anew: int = 5, scale: float = 1.0, stagger: bool = True
) -> Transform:
    """Adam in a basis that steps towards the gradient and the momentum, found anew now and then.

    every: steps between updates; each `anew`-th of them is subspace iteration.
    """
    basis = correlated(at_most(rank), each(every, stagger), anew)
    return conjugate(adam(), basis, dropped(scale))


@method(
    Paper(
        "Memory-Efficient LLM Training with Online Subspace Descent",
        "2408.12857",
        "the update of the projection by one Adam step a step, read in a third party's summary",
        "the projection steps before the gradient is projected, not after; it is not decayed; it "
        "starts at the first gradient's singular vectors; the weight of its orthogonality term, "
        "which was not found, is 0.1",
    ),
    area="optimize",
    laws=_LAWS,
)
def online_subspace_descent(
    rank: int = 128, scale: float = 0.25, rate: float = 5.0, orthogonality: float = 0.1
) -> Transform:
    """Adam in a basis that learns online to hold the gradient.

    rate: the basis's learning rate over that of the weights.
    """
    require_at_least(0, rate=rate, orthogonality=orthogonality)
    basis = online_pca(at_most(rank), rate, orthogonality)
    return conjugate(adam(), basis, dropped(scale), "keep")


@method(
    Paper(
        "Grass: Compute Efficient Low-Memory LLM Training with Structured Sparse Gradients",
        "2406.17660",
        "row selection by norm; section not read",
        "rows are chosen by largest norm (basis='random_rows': uniformly), not sampled and scaled; "
        "the whole gradient is formed first; kept rows keep their moments, new ones start at zero "
        "with the bias correction of the old; refreshes are staggered",
    ),
    area="optimize",
    laws=_LAWS,
)
def grass(
    rank: int = 128,
    every: int = 200,
    scale: float = 0.25,
    basis: str = "rows",
    stagger: bool = True,
) -> Transform:
    """Adam on the rows of the gradient that are largest; nothing is multiplied."""
    require_basis(basis)
    return conjugate(adam(), BASES[basis](at_most(rank), each(every, stagger)), dropped(scale))


@method(
    Paper(
        "Flora: Low-Rank Adapters Are Secretly Gradient Compressors",
        "2402.03293",
        "algorithm 2, the compressed momentum, behind Adafactor's scaling",
        "the momentum is corrected for its start at zero; gradient accumulation is not compressed; "
        "resampling is staggered",
    ),
    area="optimize",
    laws=_LAWS,
)
def flora_optim(rank: int = 256, every: int = 1000, stagger: bool = True) -> Transform:
    """Adafactor whose momentum lives in a random small space, drawn anew and carried over."""
    space = seeded(at_most(rank), each(every, stagger))
    return chain(adafactor(), conjugate(momentum(), space, dropped()))


@method(
    Paper(
        "SVD-Free Low-Rank Adaptive Gradient Optimization for Large Language Models",
        "2505.17967",
        "the selection of DCT columns by the gradient's norm along them, with rotated moments",
        "without error feedback; second moments turn by the squared change of basis",
    ),
    area="optimize",
    laws=_LAWS,
)
def dct_adamw(rank: int = 128, every: int = 1, scale: float = 1.0) -> Transform:
    """Adam along the cosine vectors that the gradient is largest along; only numbers are stored."""
    return conjugate(adam(), dct(at_most(rank), each(every)), dropped(scale))


@method(
    Paper(
        "Efficient Adaptive Optimization via Subset-Norm and Subspace-Momentum: Fast, "
        "Memory-Reduced Training with Convergence Guarantees",
        "2411.07120",
        "the two techniques together, subsets as in the authors' code",
        "the basis is found by subspace iteration (basis='svd' is the paper's); a subset is a line "
        "along the longer side; both averages are corrected for their start at zero; the momentum "
        "is rotated to a new basis and refreshes are staggered",
    ),
    area="optimize",
    laws=_LAWS,
)
def subset_norm_momentum(
    rank: int = 128, every: int = 200, basis: str = "randomized", stagger: bool = True
) -> Transform:
    """Momentum in a small space, plain descent outside, over one second moment a line."""
    require_basis(basis)
    found = BASES[basis](at_most(rank), each(every, stagger))
    return subset_normed(conjugate(momentum(), found, added()))


@method(
    Paper(
        "Gradient Weight-normalized Low-rank Projection for Efficient LLM Training",
        "2412.19616",
        "the weight normalisation and the projected gradient of the direction; the split of the "
        "gradient as in the authors' code",
        "applied to full weights, not to added low-rank factors; lengths and directions are read "
        "off the weight at each step and updated to first order; " + _AS_GALORE,
    ),
    area="optimize",
    laws=_LAWS,
)
def gradnormlorp(
    rank: int = 128,
    every: int = 200,
    scale: float = 0.25,
    basis: str = "randomized",
    stagger: bool = True,
) -> Transform:
    """Adam on the rows' lengths, and GaLore on their directions."""
    require_basis(basis)
    found = BASES[basis](at_most(rank), each(every, stagger))
    return by_length_and_direction(conjugate(adam(), found, dropped(scale)))
