"""GaLore: Adam in the leading singular directions of the gradient."""

from __future__ import annotations

from ..errors import unknown
from ..registry import Paper, method
from .bases import BASES
from .conjugate import Carry, conjugate
from .inner import INNER
from .lifting import dropped
from .refreshing import at_most
from .refreshing import every as each
from .transform import Transform


def inner_of(name: str) -> Transform:
    """The inner optimiser of that name; ValueError with the nearest names."""
    if name not in INNER:
        raise unknown("inner optimiser", name, INNER)
    return INNER[name]()


def require_basis(name: str) -> None:
    """Raise ValueError with the nearest names for a basis that there is not."""
    if name not in BASES:
        raise unknown("basis", name, BASES)


@method(
    Paper(
        "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection",
        "2403.03507",
        "algorithm 2, with the defaults of the authors' code",
        "the basis is refreshed by warm-started subspace iteration (basis='svd' is the paper's); "
        "moments are rotated to a new basis (carry='keep' is the paper's); refreshes are staggered "
        "over the parameters (stagger=False is the paper's); eps as in torch's AdamW; a rank above "
        "a matrix's shorter side is that side",
    ),
    area="optimize",
    laws=("gradient", "projects"),
)
def galore(
    rank: int = 128,
    every: int = 200,
    scale: float = 0.25,
    basis: str = "randomized",
    inner: str = "adam",
    carry: Carry = "rotate",
    stagger: bool = True,
) -> Transform:
    """Adam runs in the gradient's leading singular directions, found anew every so many steps."""
    require_basis(basis)
    found = BASES[basis](at_most(rank), each(every, stagger))
    return conjugate(inner_of(inner), found, dropped(scale), carry)
