"""What a folder's tensor files must be: their sizes and digests, checked before they are read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import FormatError

FORMAT = 1

_CHUNK_BYTES = 1 << 22
_MAX_HEADER_BYTES = 1 << 30


def record(files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Size in bytes and SHA-256 of each file, by its name."""
    return {f.name: {"bytes": f.stat().st_size, "sha256": file_digest(f)} for f in files}


def verify(files: Iterable[Path], recorded: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare files with their record.

    Raises FormatError, naming the file, if one is missing, truncated, edited or not recorded.
    """
    found = {f.name: f for f in files}
    for name in sorted(set(found) - set(recorded)):
        raise FormatError(f"{found[name]} is not among the files this model was saved with")
    for name, expected in recorded.items():
        if name not in found or not found[name].is_file():
            raise FormatError(f"{name} is missing; copy the whole saved folder again")
        size = found[name].stat().st_size
        if size != expected["bytes"]:
            raise FormatError(
                f"{found[name]} has {size} bytes, not the {expected['bytes']} it was saved with: "
                "truncated or edited; copy it again or save the model again"
            )
        if file_digest(found[name]) != expected["sha256"]:
            raise FormatError(
                f"{found[name]} was edited or damaged after it was saved (its SHA-256 differs); "
                "copy it again or save the model again"
            )


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def json_digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def seal(skeleton: Mapping[str, Any]) -> dict[str, Any]:
    """`skeleton` with the digest of all its other entries under "sha256"."""
    rest = {key: value for key, value in skeleton.items() if key != "sha256"}
    return rest | {"sha256": json_digest(rest)}


def require_sealed(skeleton: Mapping[str, Any], where: str) -> None:
    """Refuse a skeleton of a newer format, or one changed since it was sealed."""
    version = skeleton.get("format")
    if not isinstance(version, int) or version < 1:
        raise FormatError(f"{where} has no format version of corank's (got {version!r})")
    if version > FORMAT:
        raise FormatError(
            f"{where} has format {version}, and this corank reads up to {FORMAT}; upgrade corank"
        )
    if seal(skeleton)["sha256"] != skeleton.get("sha256"):
        raise FormatError(f"{where} was edited after it was saved (its SHA-256 differs)")


def read_header(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """The tensors of a safetensors file: name -> {"dtype", "shape", "data_offsets"}.

    Raises FormatError if the file is no safetensors file or shorter than its tensors.
    """
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
            raise FormatError(f"{path} is truncated or is no safetensors file")
        try:
            header: dict[str, dict[str, Any]] = json.loads(file.read(length))
        except ValueError as error:
            raise FormatError(f"{path} has a damaged header: {error}") from error
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != 8 + length + end:
        raise FormatError(f"{path} has {size} bytes, its header says {8 + length + end}: truncated")
    return header
