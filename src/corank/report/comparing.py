"""The measured sections of a report, made from the original and the compressed model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn

from ..calibration.data import take
from .fidelity import measure_each
from .layers import measure_layers
from .quantised import dequantised, quantised_variants
from .report import Report
from .sections import OWN
from .speed import measure_speed

#: How many sequences the speed is measured on.
_SEQUENCES = 8


def add_measurements(
    report: Report,
    original: nn.Module,
    compressed: nn.Module,
    heldout: Mapping[str, Sequence[Any]],
    *,
    sites: Collection[str] | None = None,
    repeats: int = 7,
) -> None:
    """Add "fidelity", "speed" and "layers" to a report, and a note for what was not measured.

    heldout: domain -> batches that the compression did not see; up to 8 sequences of the first
        one's middle batch are also what the speed is measured on.
    sites: the layers that torchao is to quantise, for a comparison on the same weights.

    The dense model, the compressed one ("corank") and torchao's int8 and int4 weight-only variants
    of the dense one stand side by side. Raises ValueError for no held-out data.
    """
    if not heldout:
        raise ValueError("measuring fidelity and speed takes held-out data: give one domain")
    variants, notes = quantised_variants(original, sites)
    report.notes += notes
    plain: dict[str, nn.Module] = {}
    for name in list(variants):
        try:
            plain[name] = dequantised(variants[name])
        except Exception as error:  # a kernel may be missing only when it runs
            del variants[name]
            report.notes.append(f"not compared with torchao {name} weight-only: {error}")
    rows: list[dict[str, Any]] = []
    closeness: dict[str, dict[str, float]] = {name: {} for name in (OWN, *variants)}
    for domain, batches in heldout.items():
        found = measure_each(original, {OWN: compressed, **plain}, batches, domain)
        rows += found[OWN]
        for name, measured in found.items():
            closeness[name] |= {f"{domain}: {row['measure']}": row["after"] for row in measured}
    report.sections["fidelity"] = rows
    models = {"dense": original, OWN: compressed, **variants}
    first = next(iter(heldout.values()))
    speed = measure_speed(models, take(first[len(first) // 2], slice(0, _SEQUENCES)), repeats)
    for row in speed:
        if row["variant"] in closeness:
            row["fidelity"] = closeness[row["variant"]]
    report.sections["speed"] = speed
    names = [row.name for row in report.sites]
    if layers := measure_layers(original, compressed, names, repeats):
        report.sections["layers"] = layers
