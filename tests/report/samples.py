"""Reports to render, made up."""

from __future__ import annotations

from typing import Any

from corank.report import Report, SiteRow


def make_report(layers: int = 4) -> Report:
    rows = [
        SiteRow(
            name=f"model.layers.{layer}.attention.{role}_proj",
            role=role,
            layer=layer,
            shape=(8, 8),
            numel_before=64,
            numel_after=16 * rank,
            bytes_before=256,
            bytes_after=64 * rank,
            operator="LowRank",
            rank=rank,
            error=0.1 * rank,
        )
        for layer in range(layers)
        for rank, role in enumerate(("q", "k", "v", "o"), 1)
    ]
    totals = {
        "numel_before": 64 * len(rows),
        "numel_after": 40 * len(rows),
        "bytes_before": 256 * len(rows),
        "bytes_after": 160 * len(rows),
        "model_numel_before": 64 * len(rows) + 1000,
        "model_numel_after": 40 * len(rows) + 1000,
        "model_bytes_before": 256 * len(rows) + 4000,
        "model_bytes_after": 160 * len(rows) + 4000,
    }
    return Report(
        "compress",
        "svd",
        parameters={"keep": 0.6},
        sites=rows,
        totals=totals,
        seconds={"factorisation": 1.5},
        notes=["a <note> & more"],
        refused={"odd": "groups"},
        sections=make_sections(),
        versions={"corank": "0"},
    )


def make_sections() -> dict[str, Any]:
    def variant(name: str, bytes: int, speed: float, cosine: float | None) -> dict[str, Any]:
        row = {"variant": name, "bytes": bytes, "tokens_per_second": speed, "relative": speed}
        return row if cosine is None else row | {"fidelity": {"a: mean cosine": cosine}}

    return {
        "fidelity": [
            {"domain": "a", "measure": "mean cosine", "before": 1.0, "after": 0.9, "unit": "u"},
            {"domain": "b", "measure": "mean cosine", "before": 1.0, "after": 0.8, "unit": "u"},
        ],
        "speed": [
            variant("dense", 1000, 1.0, None),
            variant("corank", 500, 2.0, 0.9),
            variant("int8", 500, 1.5, 0.95),
            variant("int4", 600, 3.0, 0.99),
        ],
        "spectra": {"x": [3.0, 2.0, 0.0], "y": [1.0, 0.5, 0.1]},
        "ranks": {"x": {"stable_rank": 1.25, "rank_90": 2}, "y": {"stable_rank": 3.5}},
        "healing": {"losses": [3.0, 2.0, 1.5]},
        "disk": {"before": 5000, "after": 2500},
    }
