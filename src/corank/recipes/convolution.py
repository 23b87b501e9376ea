"""Adapters of convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..control import batch_norms, fresh_batch_norm
from ..errors import SiteError
from ..models import Site
from ..operators import Dense, Operator, Product, Repeated
from ..registry import Adaptation, Paper, method
from ..rewrites import Delta, plus
from ..rewrites.adapting import kaiming, zeros

ADAPTER = ("adapter", "preserves")


def _taps(site: Site) -> int:
    return site.kernel[0] if len(site.kernel) == 2 else 1


def _kernels(rank: int) -> Delta:
    """b a, (out k, in k) for a kernel of height k, read again as (out, in k k), row by row.

    A row of the kernels is k rows of b a side by side, so this is b as (out, k r k) times k copies
    of a along the diagonal.
    """

    def delta(op: Operator, site: Site) -> Operator:
        (out, into), taps = op.shape, _taps(site)
        most = min(out, into // taps**2)
        if not 1 <= rank <= most:
            raise SiteError(
                site.where,
                f"rank {rank} is outside 1 to {most}",
                "Ask for a rank in that range, or give this target one of its own.",
            )
        a = kaiming(op, site, rank * taps, into // taps)
        return Product(Dense(zeros(op, out, rank * taps**2)), Repeated(Dense(a), taps))

    return delta


def _count(rank: int, sites: Sequence[Site]) -> int:
    return sum(rank * (s.shape[0] * _taps(s) ** 2 + s.shape[1]) for s in sites)


def _convlora(w: Tensor, p: dict[str, Tensor], rank: int = 2, alpha: float = 2.0) -> Tensor:
    a = p["weight_1"]
    b = p["weight"].reshape(-1, a.shape[0])  # (out k, r k)
    return w + alpha / rank * (b @ a).reshape(w.shape)


_VIEW = (
    "only two-dimensional kernels are viewed so, as the view has no meaning for others: a linear "
    "layer or a one-dimensional convolution gets plain LoRA; convolved with two small kernels "
    "in place of a sum of kernels"
)


@method(
    Paper(
        "Distillation-Supervised Convolutional Low-Rank Adaptation for Efficient Image "
        "Super-Resolution",
        "2504.11271",
        "the ConvLoRA layer of the authors' code; equations not read",
        f"{_VIEW}; the distillation is `corank.healing.spatial_affinity_loss`, for the training "
        "loop to add with weights of its own, as the paper's were not found",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=_convlora,
)
def convlora(rank: int = 2, alpha: float = 2.0) -> Adaptation:
    """LoRA of a convolution: b a, with kernel height k times the rank inside, read as kernels.

    rank * k * (k out + k in) numbers train for k x k kernels.
    """
    return Adaptation(plus(_kernels(rank), alpha / rank), lambda sites: _count(rank, sites))


@method(
    Paper(
        "ConvLoRA and AdaBN based Domain Adaptation via Self-Training",
        "2402.04964",
        "the layer, the trained batch norms and AdaBN as in the authors' code; sections not read",
        f"{_VIEW}; the self-training with a segmentation head and pseudo-labels belongs to the "
        "training loop and is left out",
    ),
    area="adapt",
    laws=(*ADAPTER, "also"),
    equation=_convlora,
)
def convlora_adabn(rank: int = 2, alpha: float = 2.0) -> Adaptation:
    """ConvLoRA, with the batch norms beside the adapted weights trained and their statistics new.

    Running means and variances are forgotten at the first step and gathered again from the batches
    that are trained on, the target domain's: the model has to be in train mode.
    """

    def also(model: nn.Module, sites: Sequence[Site]) -> list[nn.Parameter]:
        norms = batch_norms(model, [site.name for site in sites])
        return [parameter for norm in norms.values() for parameter in norm.parameters()]

    return Adaptation(
        plus(_kernels(rank), alpha / rank),
        lambda sites: _count(rank, sites),
        controls=[fresh_batch_norm()],
        also=also,
    )
