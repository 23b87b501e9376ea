"""Resident bytes of loading and running one saved model.

    python -m benchmarks.peaking.measure FOLDER [--after int4]

Prints one line of JSON. A tiny model of the same form is loaded and run first: what is resident
then, libraries mostly, is taken off everything. Peaks are Linux's VmHWM, reset between phases.
"""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import corank  # noqa: F401  from_pretrained learns our format from it
from benchmarks.peaking.theirs import quantise

PROMPT, NEW = 128, 8


def resident(field: str = "VmRSS") -> int:
    """A field of this process's status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}: peaks are measured on Linux only")


def reset_peak() -> None:
    """Let VmHWM start again from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def load(folder: Path, after: str | None) -> Any:
    """The model as a user loads it."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    if after is not None:
        quantise(model, after)
    return model.eval()


@torch.no_grad()
def run(model: Any) -> None:
    """A prefill, and some tokens with a cache."""
    ids = torch.arange(PROMPT)[None]
    found = model(ids, use_cache=True)
    for _ in range(NEW):
        ids = found.logits[:, -1:].argmax(-1)
        found = model(ids, past_key_values=found.past_key_values, use_cache=True)


def measure(folder: Path, after: str | None) -> dict[str, int]:
    """Bytes in the files, and bytes resident beyond the libraries."""
    run(load(folder / "tiny", after))
    gc.collect()
    reset_peak()
    before = resident()
    model = load(folder / "large", after)
    found = {"loading": resident("VmHWM")}
    gc.collect()
    found["loaded"] = resident()
    reset_peak()
    run(model)
    found["running"] = resident("VmHWM")
    stored = sum(file.stat().st_size for file in (folder / "large").glob("*.safetensors"))
    beyond = {name: size - before for name, size in found.items()}
    return {"stored": stored, "libraries": before} | beyond


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--after", help="what torchao does after loading")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(measure(options.folder, options.after)))


if __name__ == "__main__":
    main()
