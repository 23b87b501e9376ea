"""Folders and files that are replaced whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from ..errors import FormatError

#: What a save writes anew, so what it never carries over from the folder that it replaces.
WEIGHTS = ("model*.safetensors", "model*.safetensors.index.json", "pytorch_model*", "corank.json")
_MARKS = ("config.json", "corank.json", "modules.json")
_EXCHANGE = 2  # RENAME_EXCHANGE of linux/fs.h
_AT_FDCWD = -100  # of fcntl.h


@contextmanager
def replace_folder(
    path: str | os.PathLike[str],
    marks: Sequence[str] = _MARKS,
    stale: Sequence[str] = WEIGHTS,
    what: str = "a model",
) -> Iterator[Path]:
    """Yield an empty folder beside `path` that takes its place once the block is left well.

    Until then `path` is untouched: after an exception the new folder is removed, and a killed
    process leaves at most a folder named `.<name>.*.saving`. Files of the old folder that are no
    weights (a tokenizer, a card) are carried over unless the block wrote its own.

    marks: the files of which one says that the folder is `what` is to be saved. stale: patterns of
    the files that are never carried over.

    Raises FormatError if `path` is a file, or holds files and none of `marks` (so a mistyped path
    loses nothing); OSError, with `path` and the reason, if the disk is full or read-only.
    """
    target = Path(os.path.realpath(path))
    _require_replaceable(target, marks, what)
    with _naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".saving", dir=target.parent))
    try:
        with _naming(target):
            yield new
            _carry_over(target, new, stale)
            new.chmod(target.stat().st_mode if target.exists() else 0o777 & ~_umask())
            for file in (*new.rglob("*"), new):
                _sync(file)
            _swap(new, target)
            _sync(target.parent)
    finally:  # `new` is now what failed, or what was replaced
        shutil.rmtree(new, ignore_errors=True)


@contextmanager
def _naming(target: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None) or errno.EIO
        text = f"could not save to {target}, and left it as it was: {error}"
        kind = type(error) if isinstance(error, OSError) else OSError
        raise kind(number, text) from error


def _require_replaceable(target: Path, marks: Sequence[str], what: str) -> None:
    if target.is_file():
        raise FormatError(f"{target} is a file; {what} is saved as a folder")
    used = target.is_dir() and any(target.iterdir())
    if used and not any((target / mark).is_file() for mark in marks):
        saved = f"saved {what.split()[-1]}"
        raise FormatError(f"{target} holds files but no {saved}; name a new or an empty folder")


def _carry_over(old: Path, new: Path, stales: Sequence[str]) -> None:
    if not old.is_dir():
        return
    for file in sorted(p for p in old.rglob("*") if p.is_file()):
        name = file.relative_to(old)
        stale = len(name.parts) == 1 and any(fnmatch(name.name, pattern) for pattern in stales)
        if stale or (new / name).exists():
            continue
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, new / name)
        except OSError:  # a file system without hard links
            shutil.copy2(file, new / name)


def _swap(new: Path, target: Path) -> None:
    """Put `new` at `target`; what stood there, if anything, stands at `new` afterwards."""
    if not target.exists():
        os.rename(new, target)
    elif not _exchange(new, target):
        aside = new.with_suffix(".replaced")  # two renames: the old folder is whole in between
        os.rename(target, aside)
        os.rename(new, target)
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two folders in one step where the system can (Linux's renameat2)."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    arguments = (_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), ctypes.c_uint(_EXCHANGE))
    return rename is not None and rename(*arguments) == 0


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
