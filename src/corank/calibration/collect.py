"""One pass over the data that fills `site.stats` with what was asked for, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ..errors import unknown
from ..models import Site
from .data import Batches, batches, to_device
from .experts import fill_up
from .gradients import GradientPass
from .inputs import InputPass, Watch
from .losses import Loss, weighted_loss
from .running import call, check_vocabulary, device_of, untouched
from .states import STATE_NEEDS
from .statistics import INPUT_NEEDS, LOSS_NEEDS


def collect(
    model: nn.Module,
    sites: Sequence[Site],
    needs: Iterable[str],
    data: Batches | Iterable[Any],
    *,
    loss: Loss | None = None,
    watch: Callable[[], Watch] | None = None,
) -> list[str]:
    """Fill `site.stats` of every site with `needs`, in one pass over the data.

    Of the inputs x (n,) of a site, padding left out, n being its columns:
      "gram" E[x x^T] (n, n), "mean" E[x] (n,), "abs_mean" E|x| (n,), "square_mean" E[x^2] (n,),
      "abs_max" max|x| (n,).
    Of its outputs y (m,) and weight W (m, n), for the loss L of one sample (see `losses`):
      "output_gram" E[g g^T] (m, m), g = dL/dy per row; "fisher" mean over samples of (dL/dW)^2
      (m, n); "gradient" mean over samples of dL/dW (m, n).
    Of a fused expert: "output_cosines" (experts,), the mean over the layer's tokens of the cosine
    between its output and each expert's, all answering all tokens.
    Of the in_proj of a state-space mixer: "state_scores" (groups * state,), "state_gram" (inner,
      inner), what the dimensions of its states owe to them: see `states`.
    "tokens", the number of rows x behind the means, is always there. The x of an embedding is
    one-hot: it gets "row_counts" (vocab,), how often each row was looked up, in place of a Gram.
    All are float32 on the model's device, summed in float64. Sites called with the same tensor
    share the very same statistics of x. A fused expert sees the tokens routed to it;
    `experts.fill_up` states what is done for experts that see few. With torch.distributed
    initialised, rank r takes batches r, r + world, ... and every rank ends with the sums of all.
    `watch()` makes, for one pass, what is given a rank's statistics of x by site name after each
    batch, and returns the sites that need no more: their sums stop, and with all of them the pass.

    The model is left as it was: mode, requires_grad, gradients, hooks, caches, random numbers.

    Returns: notes for the report, such as experts that saw few tokens.
    Raises: SiteError for activations that are not finite, or a site that the data never reached;
        DataError for token ids beyond the vocabulary, batches the model does not take, or a
        missing loss; ValueError for an unknown need.
    """
    wanted = check_needs(needs)
    held = data if isinstance(data, Batches) else batches(data)
    device = device_of(model)
    for index, batch in enumerate(held):
        check_vocabulary(model, batch, index)
    mine = share(held)
    seed = sites[0].seed if sites else 0
    notes = list(held.notes)
    alone: frozenset[int] = frozenset()
    while True:  # again only where sites turn out to share their input in some batches, not all
        inputs = InputPass(model, sites, wanted, device, alone)
        gradients = GradientPass(model, sites, wanted, device) if wanted & LOSS_NEEDS else None
        look = watch() if watch is not None else None
        with untouched(model), inputs, gradients or nullcontext():
            for number, batch in mine:
                batch = to_device(batch, device)
                inputs.begin(batch)
                if gradients is None:
                    with torch.no_grad():
                        call(model, batch)
                else:
                    generator = torch.Generator().manual_seed(seed + number)
                    _learn(model, batch, loss, gradients, generator, "gradient" in wanted)
                if look is not None and inputs.settle(look):
                    break
        if not (diverged := inputs.finish()):
            break
        alone |= diverged
    inputs.store()
    if gradients is not None:
        gradients.finish()
        notes += gradients.store()
    if inputs.batches < len(mine):
        notes.append(
            f"calibration ended after {inputs.batches} of {len(mine)} batches: no more were needed"
        )
    notes += inputs.notes
    fill_up(list(sites), notes)
    return notes


def check_needs(needs: Iterable[str]) -> frozenset[str]:
    """The needs as a set. Raises ValueError for an unknown one, with the nearest names."""
    wanted = frozenset(needs)
    known = INPUT_NEEDS | LOSS_NEEDS | STATE_NEEDS
    for name in wanted - known:
        raise unknown("statistic", name, known)
    return wanted


def _learn(
    model: nn.Module,
    batch: Any,
    loss: Loss | None,
    gradients: GradientPass,
    generator: torch.Generator,
    gradient: bool,
) -> None:
    gradients.begin(batch)
    with torch.enable_grad():
        scalar, factors = weighted_loss(model, batch, loss, generator, gradient)
    gradients.backward(scalar, factors)


def share(held: Batches) -> list[tuple[int, Any]]:
    """This rank's batches, numbered over all ranks."""
    numbered = list(enumerate(held))
    if not (dist.is_available() and dist.is_initialized()):
        return numbered
    return numbered[dist.get_rank() :: dist.get_world_size()]
