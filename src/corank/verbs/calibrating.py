"""The data of a call, and the statistics that its recipe reads of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from ..calibration import Batches, batches, collect, load_statistics, save_statistics
from ..errors import DataError
from ..models import Site
from ..registry import Recipe
from .options import Options


def find_stored(options: Options) -> str | os.PathLike[str] | None:
    """The file of statistics, where there is one to read."""
    path = options.statistics
    return path if path is not None and Path(path).is_file() else None


def read_data(
    method: str, recipe: Recipe, options: Options, is_stored: bool, heals: bool
) -> Batches | None:
    """The data, or None where nothing needs any."""
    if options.data is not None:
        return batches(
            options.data, tokenizer=options.tokenizer, count=options.count,
            sequence_length=options.sequence_length, batch_size=options.batch_size,
        )  # fmt: skip
    if (recipe.needs and not is_stored) or recipe.cascade or recipe.look or heals:
        wanted = ", ".join(sorted(recipe.needs)) or "to run the model on"
        raise DataError(f"{method!r} needs calibration data ({wanted}): give data=")
    return None


def calibrate(
    model: nn.Module, sites: Sequence[Site], recipe: Recipe, inputs: Batches | None,
    options: Options, stored: str | os.PathLike[str] | None,
) -> list[str]:  # fmt: skip
    """Fill the sites' statistics; returns what a reader of the report should know."""
    notes: list[str] = []
    if stored is not None and recipe.needs:
        load_statistics(model, sites, stored, recipe.needs)
    elif inputs is not None and recipe.needs:
        notes = collect(model, sites, recipe.needs, inputs, loss=options.loss)
        if options.statistics is not None:
            save_statistics(model, sites, options.statistics)
    elif inputs is not None:
        notes = inputs.notes
    if recipe.look is not None and inputs is not None:
        recipe.look.find(model, sites, inputs, options.loss)
    return notes
