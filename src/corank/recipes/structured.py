"""Adapters made of one small matrix, used again over blocks of the weight."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..errors import SiteError
from ..models import Site
from ..operators import (
    Cycle,
    Dense,
    Operator,
    Product,
    Repeated,
    Rope,
    Stretch,
    TileAffine,
    transpose,
)
from ..registry import Adaptation, Paper, method
from ..rewrites import Rewrite, plus
from ..rewrites.adapting import require_rank, zeros
from .counts import each

ADAPTER = ("adapter", "preserves")

#: How MoRA's square matrix meets a longer input and output. The authors' code numbers them.
KINDS = {
    "share": 1, "group": 2, "group_share": 3, "share_group": 4, "rotate": 6,
    "decouple": None, "truncate": None,
}  # fmt: skip


def mora_side(out: int, into: int, rank: int, kind: str) -> int:
    """The side of a square matrix of about as many numbers as LoRA's factors of that rank."""
    side = int(((out + into) * rank) ** 0.5 + 0.5)
    return side // 2 * 2 if kind == "rotate" else side


def _mora(w: Tensor, p: dict[str, Tensor], rank: int = 8, kind: str = "rotate") -> Tensor:
    out, into = w.shape
    side = mora_side(out, into, rank, kind)
    chunks = -(-into // side)
    delta = w.new_zeros(chunks * side, chunks * side)
    for t in range(chunks):
        turn = w.new_zeros(side, side)
        for j in range(side // 2):
            angle = w.new_tensor(t * 10000.0 ** (-2 * j / side))
            k = j + side // 2
            turn[j, j] = turn[k, k] = angle.cos()
            turn[j, k], turn[k, j] = -angle.sin(), angle.sin()
        part = slice(t * side, (t + 1) * side)
        delta[part, part] = p["weight"] @ turn
    wrapped = w.new_zeros(chunks * side, into)
    for i in range(chunks * side):
        wrapped[i, i % into] = 1
    rows = [i % (chunks * side) for i in range(out)]
    return w + (delta @ wrapped)[rows]


@method(
    Paper(
        "MoRA: High-Rank Updating for Parameter-Efficient Fine-Tuning",
        "2405.12130",
        "section 4: equation 6 (sharing) and equation 9 (rotation); the others as in the "
        "authors' code, decoupling and truncation as recalled from the section",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=_mora,
)
def mora(rank: int = 8, kind: str = "rotate") -> Adaptation:
    """One square matrix M of as many numbers as LoRA's, between fixed ways to shorten and lengthen.

    kind, with its number in the authors' code: "share" (1) sums x in blocks and repeats M's output;
    "group" (2) sums and repeats neighbours; "group_share" (3) and "share_group" (4) mix the two;
    "rotate" (6, for small ranks) sends each block of x, turned by its place, through M; "decouple"
    is that without the turn; "truncate" uses the beginning of x only. A rest is filled with the
    beginning of x. M is zero at the start and is not scaled.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")

    def delta(op: Operator, site: Site) -> Operator:
        out, into = op.shape
        side = mora_side(out, into, rank, kind)
        matrix = Dense(zeros(op, side, side))
        chunks = -(-into // side)
        filled = Cycle((chunks * side, into))
        if kind in ("rotate", "decouple"):
            turned = [Rope(chunks, side)] if kind == "rotate" else []
            lengthened = Cycle((out, chunks * side))
            return Product(lengthened, Repeated(matrix, chunks), *turned, filled)
        if kind == "truncate":
            return Product(transpose(Cycle((side, out))), matrix, Cycle((side, into)))
        summed = [transpose(Cycle((chunks * side, side))), filled]
        shorter = [transpose(Stretch((into, side)))] if kind.startswith("group") else summed
        longer = Stretch((out, side)) if kind.endswith("group") else Cycle((out, side))
        return Product(longer, matrix, *shorter)

    return Adaptation(plus(delta), each(lambda out, into: mora_side(out, into, rank, kind) ** 2))


def _bone(w: Tensor, p: dict[str, Tensor], rank: int = 64, variant: str = "bone") -> Tensor:
    if variant == "miss":
        blocks = -(-w.shape[1] // rank)
        return w + p["weight"].repeat(1, blocks)[:, : w.shape[1]]
    tiles = w.unflatten(0, (-1, rank)).unflatten(2, (-1, rank)).transpose(1, 2)  # (i, j, r, r)
    m = p["blocks"][:, None]
    return (tiles + tiles @ m + m).transpose(1, 2).reshape(w.shape)


@method(
    Paper(
        "Bone: Block Affine Transformation as Parameter Efficient Fine-tuning Methods for Large "
        "Language Models",
        "2409.15371",
        "the layer as in the authors' code and in PEFT's MiSS (init_weights=\"bat\" is Bone); "
        "equations not read",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=_bone,
)
def bone(rank: int = 64, variant: str = "bone") -> Adaptation:
    """Tiles (rank, rank) of the weight move by W_ij M_i + M_i, one M_i for each row of tiles.

    variant: "bone", where rank must divide both sides; or "miss", the later form, which adds the
    same (out, rank) matrix to every block of columns and is guided by W no more. out * rank
    numbers train in both, zero at the start.
    """
    if variant not in ("bone", "miss"):
        raise ValueError(f'variant must be "bone" or "miss", got {variant!r}')

    def share(op: Operator, site: Site) -> Operator:
        out, into = op.shape
        if not 1 <= rank <= into:
            raise SiteError(
                site.where, f"rank {rank} is outside 1 to {into}", "Ask for a smaller rank."
            )
        return Product(Dense(zeros(op, out, rank)), transpose(Cycle((into, rank))))

    def tile(op: Operator, site: Site) -> Operator:
        require_rank(rank, site)
        _require_tiles(rank, site)
        return TileAffine(op, zeros(op, op.shape[0] // rank, rank, rank))

    def count(sites: Sequence[Site]) -> int:
        for site in sites:
            _require_tiles(rank, site)
        return numbers(sites)

    numbers = each(lambda out, into: out * rank)
    if variant == "miss":
        return Adaptation(plus(share), numbers)
    return Adaptation(Rewrite(tile), count)


def _require_tiles(rank: int, site: Site) -> None:
    if any(side % rank for side in site.shape):
        raise SiteError(
            site.where,
            f"tiles of {rank} do not fill it",
            'Ask for a rank that divides both sides, or for variant="miss".',
        )
