"""Writing a random LLaMA in every form, in two sizes: the one measured, and a tiny one before it.

    python -m benchmarks.peaking.make FOLDER [--small]

Prints one line of JSON: the forms, what torchao does to them after loading, and notes.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch

import corank
from benchmarks.board.measure import environment
from benchmarks.decode import WAYS, make
from benchmarks.peaking.theirs import QUANTISED, save_quantised

#: Width and layers: of the model that is loaded first, so that all libraries are there, and of
#: the one that is measured.
TINY, LARGE = (256, 1), (1024, 24)


def build(steps: Any, width: int, layers: int) -> Any:
    """A model of so many layers, all the same: one is rewritten and then repeated."""
    model: Any = make(width, 1)
    if steps is not None:
        corank.compress(model, steps, data=[torch.randint(0, 512, (8, 64))])
    stack = model.model.layers
    stack.extend(copy.deepcopy(stack[0]) for _ in range(layers - 1))
    for number, layer in enumerate(stack):
        layer.self_attn.layer_idx = number
    model.config.num_hidden_layers = layers
    return model


def write(folder: Path, small: bool) -> dict[str, Any]:
    """Every form into a folder of its own; its two sizes in "tiny" and "large"."""
    sizes = {"tiny": TINY, "large": TINY if small else LARGE}
    forms: list[dict[str, Any]] = []
    notes = []
    for number, (key, steps) in enumerate(WAYS.items()):
        place = folder / f"form-{number}"
        for name, (width, layers) in sizes.items():
            corank.save(build(steps, width, layers), place / name)
        forms.append({"key": key, "folder": str(place), "after": None})
    dense = Path(forms[0]["folder"])
    for bits in QUANTISED:
        place = folder / bits
        try:
            for name in sizes:
                save_quantised(dense / name, place / name, bits)
            forms.append({"key": f"torchao {bits}", "folder": str(place), "after": None})
        except Exception as error:  # whatever they cannot write becomes the note's reason
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            forms.append({"key": f"torchao {bits}", "folder": str(dense), "after": bits})
            notes.append(f"torchao {bits} is no file here ({reason}): made after a dense loading")
    return {
        "forms": forms, "notes": notes, "environment": environment() | {"dtype": "bfloat16"},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(write(options.folder, options.small)))


if __name__ == "__main__":
    main()
