"""The table of docs/families.md: `python -m tests.models.table > docs/families.md`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from corank.models import survey

from .families import FAMILIES

HEAD = """# What is found in each family of models

Written by `python -m tests.models.table`; a test keeps it true. Counts are of tiny random models
with two blocks (per stack) built from their configurations. Every site listed is read, replaced
by two factors of full rank with the model's outputs unchanged, and put back, in the tests. An
expert counts once per projection. A tied weight is one site, under the embedding's name.

| family | sites: role and count | tied to the embedding | refused, and why |
|---|---|---|---|"""


def lines() -> Iterator[str]:
    """The page, line by line."""
    yield HEAD
    for family in FAMILIES.values():
        with torch.device("meta"):
            sites, refused = survey(family.build())
        roles = sorted({site.role for site in sites})
        counts = ", ".join(f"{r} {sum(s.role == r for s in sites)}" for r in roles)
        tied = ", ".join(f"`{path}`" for site in sites for path in site.tied)
        reasons = "; ".join(f"`{refusal.name}`: {refusal.reason}" for refusal in refused)
        yield f"| {family.title} | {counts} | {tied} | {reasons} |"


if __name__ == "__main__":
    print("\n".join(lines()))
