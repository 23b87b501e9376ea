"""Training a weight by its singular triples."""

from __future__ import annotations

from ..control import Control, drawn, spectral_rounds, truncating
from ..control.penalties import frobenius_decay
from ..errors import SiteError
from ..models import Site
from ..operators import Dense, LowRank, Operator, Sum
from ..registry import Factorization, Paper, method
from ..rewrites import Rewrite, all_triples, leading, rooted
from ..rewrites.adapting import trains
from ..rewrites.decomposed import wide
from .counts import each, low_rank

FACTORIZATION = ("factorization",)


@method(
    Paper(
        "Sparse Spectral Training and Inference on Euclidean and Hyperbolic Neural Networks",
        "2405.15481",
        "the abstract and notes on the method; algorithm 1 was not read",
        "every draw of vectors comes with a fresh decomposition, the draws being the rounds; the "
        "gradient without the singular value is the usual one divided by it; the optimiser forgets "
        "the singular values' moments too, as their order changes; interval and warm-up are ours; "
        "hyperbolic layers are left out",
    ),
    area="train",
    laws=(*FACTORIZATION, "preserves", "moves_frozen"),
    equation=lambda w, p, **_: (
        p["b"] @ p["gate"].diag() @ p["a"] + p["b_1"] @ p["gate_1"].diag() @ p["a_1"]
    ),
)
def sst(rank: int = 64, every: int = 200, warmup: int = 20) -> Factorization:
    """U diag(s) V^T: all singular values train, and in turns `rank` pairs of singular vectors.

    Every `every` steps the weight is decomposed again, other vectors are drawn, the more likely
    the larger their value, and the rate warms up again over `warmup` steps. The rank is under the
    smaller side of every weight.
    """
    if every < 1 or warmup < 0:
        raise ValueError(f"every={every} must be at least 1 and warmup={warmup} at least 0")

    def rewrite(op: Operator, site: Site) -> Operator:
        if rank >= min(op.shape):
            raise SiteError(
                site.where, f"rank {rank} leaves none of its {min(op.shape)} triples to wait",
                "Ask for a smaller rank.",
            )  # fmt: skip
        u, s, vh = all_triples(op)
        chosen = drawn(s, rank, site.draws())
        rest = LowRank(u[:, ~chosen], vh[~chosen], trains(s[~chosen]))
        active = LowRank(trains(u[:, chosen]), trains(vh[chosen]), trains(s[chosen]))
        return Sum(rest, active)

    return Factorization(
        Rewrite(rewrite),
        count=each(lambda out, into: min(out, into) + rank * (out + into)),
        frozen=each(lambda out, into: (min(out, into) - rank) * (out + into)),
        controls=(spectral_rounds(every, warmup),),
    )


@method(
    Paper(
        "Exploring Low Rank Training of Deep Neural Networks",
        "2209.13569",
        "the abstract; the two techniques as Khodak et al. (2105.01029) define them",
        "the roots of the singular values go to both factors; the decay is a penalty, whose "
        "gradient the optimiser sees, and its default is ours",
    ),
    area="train",
    laws=(*FACTORIZATION, "from_w"),
    equation=lambda w, p, **_: p["b"] @ p["a"],
)
def spectral_init(rank: int = 64, decay: float = 1e-4) -> Factorization:
    """b a started at the weight's leading singular triples, with Frobenius decay.

    decay: lambda, at least 0, of the penalty lambda / 2 |b a|^2. It stands for the weight decay of
    these factors: give the optimiser none for them.
    """
    if decay < 0:
        raise ValueError(f"decay={decay} must be at least 0")

    def rewrite(op: Operator, site: Site) -> Operator:
        b, a = rooted(leading(op, site, rank))
        return LowRank(trains(b), trains(a))

    controls = (Control(penalty=frobenius_decay(decay)),) if decay else ()
    return Factorization(Rewrite(rewrite), low_rank(rank), controls=controls)


@method(
    Paper(
        "Trained Rank Pruning for Efficient Deep Neural Networks",
        "1812.02402",
        "the abstract and the authors' code (cifar-TRP.py); equations not read",
        "a convolution is cut as filters by inputs, one of the code's ways; the subgradient is "
        "added in the step after a cut, the others going without; all defaults are ours",
    ),
    area="train",
    laws=(*FACTORIZATION, "from_w", "preserves"),
    equation=lambda w, p, **_: p["weight"],
)
def trp(every: int = 20, energy: float = 0.98, nuclear: float = 3e-4) -> Factorization:
    """All of W trains, and is cut back to low rank every `every` steps and at the end.

    energy: the share, over 0 to 1, of the squared singular values that a cut keeps. nuclear: times
    the nuclear norm is added to the loss right after a cut. The trained weights have low rank, so
    `corank.compress(model, "svd", ...)` then costs nothing.
    """
    if every < 1 or not 0 < energy <= 1 or nuclear < 0:
        raise ValueError(
            f"every={every} must be at least 1, energy={energy} over 0, to 1, and "
            f"nuclear={nuclear} at least 0"
        )
    return Factorization(
        Rewrite(lambda op, site: Dense(trains(wide(op).clone()))),
        count=each(lambda out, into: out * into),
        controls=(truncating(every, energy, nuclear),),
    )
