"""New adapters within the principal subspace of many old ones."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import FormatError, SiteError
from ..linalg import exact_svd
from ..models import Site
from ..operators import Dense, LowRank, Operator, Product, Scaled
from ..registry import Adaptation, Paper, method
from ..rewrites import plus
from ..rewrites.adapting import leaf_dtype, trains
from .counts import each

#: A trained LoRA: site name -> its (scaled) LowRank, or the folder that PEFT saved it in.
Source = Mapping[str, Operator] | str | os.PathLike[str]


def _eigenlorax(w: Tensor, p: dict[str, Tensor], **_: Any) -> Tensor:
    return w + p["weight"] @ p["weight_1"] @ p["weight_2"] @ p["weight_3"]


@method(
    Paper(
        "EigenLoRAx: Recycling Adapters to Find Principal Subspaces for Resource-Efficient "
        "Adaptation and Inference",
        "2502.04700",
        "algorithm 1 (number from memory) as in the authors' code",
        "too few adapters are completed by uniform vectors orthogonal to theirs, as in the code; "
        "a scale of the old adapters goes into their up-projections; `project` starts from the "
        "last old adapter's coordinates",
    ),
    area="adapt",
    laws=("adapter",),
    equation=_eigenlorax,
)
def eigenlorax(
    adapters: Sequence[Source], components: int = 32, rank: int = 8, project: bool = False
) -> Adaptation:
    """W + c l (l' c') with frozen bases c, c' of old adapters' principal subspaces; l, l' train.

    adapters: trained LoRAs of the same model, as folders of PEFT or site name -> LowRank.
    components: directions kept on each side, random ones added where the adapters have fewer.
    project: start at the last adapter's coordinates in them; else uniform in [-1/2, 1/2), as
    published, so that the start is not that of W.
    """
    if not adapters:
        raise ValueError("adapters: at least one trained adapter")
    if components < 1 or rank < 1:
        raise ValueError(f"components={components}, rank={rank}: at least 1")
    read = [_read(source) for source in adapters]

    def delta(op: Operator, site: Site) -> Product:
        dtype = leaf_dtype(op)
        pairs = [_factors(old, site) for old in read]
        b = _principal([b.to(op.device, dtype) for b, _ in pairs], components, site)
        a = _principal([a.mT.to(op.device, dtype) for _, a in pairs], components, site)
        if project:
            last_b, last_a = (t.to(op.device, dtype) for t in pairs[-1])
            left, right = b.mT @ last_b, last_a @ a
        else:
            left, right = (
                (torch.rand(*shape, generator=site.draws()) - 0.5).to(op.device, dtype)
                for shape in ((components, rank), (rank, components))
            )
        inner = (Dense(trains(left)), Dense(trains(right)))
        return Product(Dense(b), *inner, Dense(a.mT.contiguous()))

    return Adaptation(
        plus(delta),
        each(lambda out, into: 2 * components * rank),
        each(lambda out, into: components * (out + into)),
    )


def _principal(factors: Sequence[Tensor], components: int, site: Site) -> Tensor:
    """(side, components) orthonormal: principal directions of the factors' columns, then others."""
    columns = torch.cat(list(factors), 1)
    side = columns.shape[0]
    if components > side:
        raise SiteError(
            site.where, f"{components} components of {side} numbers", "Ask for fewer components."
        )
    u, s, _, _ = exact_svd(columns - columns.mean(1, keepdim=True))
    there = int((s > s[0] * max(columns.shape) * torch.finfo(s.dtype).eps).sum())
    kept = u[:, : min(there, components)]
    missing = components - kept.shape[1]
    if missing:
        drawn = torch.rand(side, missing, generator=site.draws()).to(kept)
        kept = torch.linalg.qr(torch.cat([kept, drawn], 1)).Q
    return kept


def _factors(old: Mapping[str, Operator], site: Site) -> tuple[Tensor, Tensor]:
    found = old.get(site.name)
    inner, scale = (found.operator, found.scale) if isinstance(found, Scaled) else (found, 1.0)
    if not isinstance(inner, LowRank) or inner.shape != site.shape:
        raise SiteError(
            site.where,
            "an adapter of `adapters` has no low-rank factors of its shape here",
            "Target only the sites that all the old adapters have.",
        )
    b, a = inner.factors()
    return scale * b.detach(), a.detach()


def _read(source: Source) -> Mapping[str, Operator]:
    if isinstance(source, Mapping):
        return source
    from safetensors.torch import load_file

    folder = Path(source)
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError) as error:
        raise FormatError(f"{folder} holds no adapter of PEFT: {error}") from error
    scale = config["lora_alpha"] / config["r"] ** (0.5 if config.get("use_rslora") else 1.0)
    found = {}
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            path = name.removesuffix(".lora_A.weight").removeprefix("base_model.model.")
            b = tensors[name.replace(".lora_A.", ".lora_B.")]
            found[path] = Scaled(LowRank(b, a), scale)
    return found
