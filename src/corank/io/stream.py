"""Compressing a checkpoint on disk without building its model."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn

from ..errors import FormatError, SiteError
from ..layers import Experts
from ..models import Site, Targets, find_sites, install
from ..operators import Dense, Operator, build, describe
from .folder import replace_folder
from .record import seal
from .save import copy_companions
from .shards import ShardWriter, parse_bytes
from .skeletons import describe_model
from .source import Source, empty_model

#: (site name, weight (out, in), site) -> what stands there from now on; None leaves it dense.
StreamRewrite = Callable[[str, Tensor, Site], Operator | None]


def stream(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    rewrite: StreamRewrite,
    *,
    targets: Targets = "all-linear",
    seed: int = 0,
    max_shard_size: int | str = "256MB",
) -> dict[str, int]:
    """Rewrite the sites of a transformers folder into the folder `out`, as `save` would write it.

    One stored parameter is in memory at a time, what `rewrite` makes of it, and at most one shard
    of `max_shard_size`. The fused experts of a layer are one parameter. Small files (tokenizer,
    card, generation settings) are copied. `out` is replaced whole or not at all.

    Returns the numbers stored (numel) at each site that was rewritten. Raises FormatError for a
    folder that is no dense safetensors checkpoint of a transformers model, SiteError for an
    operator of another shape, and what `find_sites` and `replace_folder` raise.
    """
    source_folder, shard_bytes = Path(folder), parse_bytes(max_shard_size)
    model: Any = empty_model(source_folder)
    dtype = str(model.dtype).removeprefix("torch.")
    sites, source = find_sites(model, targets, seed), Source(source_folder, model)
    config = model.config
    with replace_folder(out) as new:
        writer = _Writer(model, sites, rewrite, ShardWriter(new, shard_bytes))
        for name, tensor in source.tensors():
            writer.take(name, tensor)
        writer.require_complete(source_folder)
        skeleton = describe_model(model) | {"dtype": dtype, "files": writer.shards.finish()}
        config.quantization_config = seal(skeleton)
        config.save_pretrained(new)
        copy_companions(source_folder, new)
    return writer.numel


@final
class _Writer:
    """Takes the checkpoint's tensors one by one, and keeps the empty model in step."""

    def __init__(
        self, model: nn.Module, sites: list[Site], rewrite: StreamRewrite, shards: ShardWriter
    ) -> None:
        self.model, self.rewrite, self.shards = model, rewrite, shards
        self.sites: dict[str, Site] = {}
        self.experts: defaultdict[str, dict[int, Site]] = defaultdict(dict)
        self.numel: dict[str, int] = {}
        state = model.state_dict(keep_vars=True)
        self.identity = {name: id(tensor) for name, tensor in state.items()}
        self.written: set[int] = set()
        for site in sites:
            if site.kind == "expert":
                path, projection, number = site.expert
                self.experts[f"{path}.{projection}"][number] = site
            else:
                self.sites |= {f"{path}.weight": site for path in (site.name, *site.tied)}
        self.fused = {name.rpartition(".")[0] for name in self.experts}

    def take(self, name: str, tensor: Tensor) -> None:
        """Rewrite or copy one parameter; a tied one that was taken already is passed over."""
        if self.identity[name] in self.written:
            return
        self.written.add(self.identity[name])
        path, _, leaf = name.rpartition(".")
        if name in self.sites:
            site = self.sites[name]
            if not self._put(site, _canonical(tensor, site.kind), f"{site.name}.operator"):
                self.shards.add(name, tensor)
        elif path in self.fused and leaf in ("gate_up_proj", "down_proj"):
            self._take_experts(path, leaf, tensor)
        else:
            self.shards.add(name, tensor)

    def require_complete(self, folder: Path) -> None:
        """Refuse a checkpoint that leaves a tensor of the model without a value."""
        lost = [name for name, tensor in self.identity.items() if tensor not in self.written]
        if lost:
            raise FormatError(f"{folder} lacks {len(lost)} tensors of its model, as {lost[0]}")

    def _take_experts(self, path: str, projection: str, tensor: Tensor) -> None:
        targeted = self.experts[f"{path}.{projection}"]
        for number, matrix in enumerate(tensor):
            here = f"{path}.{projection}.{number}"
            self._unfuse(path, here, matrix)
            if number not in targeted or not self._put(targeted[number], matrix, here):
                self.shards.add(f"{here}.weight", matrix)

    def _unfuse(self, path: str, here: str, matrix: Tensor) -> None:
        """One operator per expert, none of them rewritten yet."""
        if not isinstance(self.model.get_submodule(path), Experts):
            shape = (matrix.shape[0], matrix.shape[1])
            site = Site(here, "other", None, shape, False, "expert")
            install(self.model, site, Dense(matrix.to("meta")))
            layer = self.model.get_submodule(path)
            assert isinstance(layer, Experts)
            layer.rewritten.clear()

    def _put(self, site: Site, matrix: Tensor, prefix: str) -> bool:
        op = self.rewrite(site.name, matrix, site)
        if op is None:
            return False
        if not isinstance(op, Operator):
            raise SiteError(
                site.where, f"rewritten to a {type(op).__name__}", "Return an Operator or None."
            )
        install(self.model, site, build(describe(op)))
        for leaf, value in op.state_dict().items():
            self.shards.add(f"{prefix}.{leaf}", value)
        self.numel[site.name] = op.numel()
        return True


def _canonical(tensor: Tensor, kind: str) -> Tensor:
    if kind == "conv1d_transposed":
        return tensor.t().contiguous()
    return tensor.flatten(1) if kind == "conv" else tensor
