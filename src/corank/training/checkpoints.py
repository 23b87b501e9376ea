"""Checkpoints of a run: the last whole one, the settings that they go with, and full disks."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import FormatError

SETTINGS = "corank_settings.json"


def last_whole(folder: Path, processes: int = 1) -> Path | None:
    """The last checkpoint that was written to its end: a kill can come while one is."""
    found = [p for p in folder.glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit()]
    for checkpoint in sorted(found, key=lambda p: -int(p.name.rpartition("-")[2])):
        if _is_whole(checkpoint) and len(list(checkpoint.glob("rng_state*.pth"))) >= processes:
            return checkpoint
    return None


def _is_whole(checkpoint: Path) -> bool:
    """The Trainer's own state is the last that is written."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def check_settings(folder: Path, settings: dict[str, Any], resume: bool) -> None:
    """Refuse to resume with other settings than those that the run began with; keep them."""
    file = folder / SETTINGS
    text = json.dumps(settings, sort_keys=True, indent=1, default=str) + "\n"
    if resume and file.is_file():
        kept = json.loads(file.read_text(encoding="utf-8"))
        now = json.loads(text)
        changed = sorted(k for k in {*kept, *now} if kept.get(k) != now.get(k))
        if changed:
            told = ", ".join(f"{k} was {kept.get(k)!r} and is {now.get(k)!r}" for k in changed)
            raise FormatError(f"{folder} was begun with other settings: {told}")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}.new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)


@contextmanager
def writing(folder: Path, step: int) -> Iterator[None]:
    """Turn what goes wrong while a checkpoint is written into an OSError that says what is left.

    The half-written checkpoint goes, which gives its room back to the disk.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        half = folder / f"checkpoint-{step}"
        if not _is_whole(half):
            shutil.rmtree(half, ignore_errors=True)
        last = last_whole(folder)
        left = "there is none before it" if last is None else f"{last.name} is as it was"
        raise OSError(
            f"could not write the checkpoint of step {step} to {folder} ({error}): {left}. Make "
            "room on the disk, and go on with resume"
        ) from error
