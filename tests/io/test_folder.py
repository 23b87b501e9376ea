from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from corank.errors import FormatError
from corank.io import folder as folders
from corank.io import load, save
from corank.io.folder import replace_folder
from tests.io import tiny


def listing(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = tiny.Cnn()
    tiny.compress(model, "all")
    save(model, tmp_path / "m")
    return tmp_path / "m"


@contextmanager
def largest_file(count_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_folder(saved: Path) -> None:
    before = listing(saved)
    with largest_file(1000), pytest.raises(OSError, match=f"could not save to {saved}"):
        save(tiny.Cnn(width=32), saved)
    assert listing(saved) == before
    assert [p.name for p in saved.parent.iterdir()] == ["m"]


def test_a_full_disk_leaves_the_old_transformers_folder(tmp_path: Path) -> None:
    save(tiny.bert(), tmp_path / "m")
    before = listing(tmp_path / "m")
    with largest_file(5000), pytest.raises(OSError, match="left it as it was"):
        save(tiny.bert(), tmp_path / "m")
    assert listing(tmp_path / "m") == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that even root cannot fill")
def test_a_read_only_parent_is_named() -> None:
    with pytest.raises(OSError, match="could not save to /proc/model"):
        save(tiny.Cnn(), "/proc/model")


SLOW = """
import sys, time
import safetensors.torch
from corank.io import save
from tests.io import tiny

def stall(tensors, file, metadata=None):
    file.write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)

safetensors.torch.save_file = stall
save(tiny.Cnn(), sys.argv[1])
"""


def test_killing_a_save_leaves_the_old_folder_whole(saved: Path) -> None:
    before = listing(saved)
    command = [sys.executable, "-c", SLOW, str(saved)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert listing(saved) == before
    left = [p for p in saved.parent.iterdir() if p != saved]
    assert len(left) == 1
    assert left[0].suffix == ".saving"
    load(saved, tiny.Cnn)
    save(tiny.Cnn(), saved)  # the next save is not in its way
    load(saved, tiny.Cnn)


def test_a_folder_is_replaced_in_one_step(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux exchanges folders")

    def refuse(*_: object) -> None:
        raise AssertionError("a moment without a folder")

    monkeypatch.setattr(os, "rename", refuse)
    with replace_folder(saved) as new:
        (new / "config.json").write_text("{}")
    assert (saved / "config.json").is_file()


def test_two_renames_do_where_folders_cannot_be_exchanged(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_exchange", lambda a, b: False)
    with replace_folder(saved) as new:
        (new / "config.json").write_text("{}")
    assert set(listing(saved)) == {"config.json"}
    assert [p.name for p in saved.parent.iterdir()] == ["m"]


def test_other_files_stay_and_old_weights_go(saved: Path) -> None:
    (saved / "README.md").write_text("mine")
    (saved / "extra").mkdir()
    (saved / "extra" / "notes.txt").write_text("too")
    with replace_folder(saved) as new:
        (new / "config.json").write_text("{}")
    assert set(listing(saved)) == {"README.md", "extra/notes.txt", "config.json"}


def test_a_folder_without_a_model_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(FormatError, match="no saved model"):
        save(tiny.Cnn(), tmp_path)
    file = tmp_path / "thesis.tex"
    with pytest.raises(FormatError, match="is a file"):
        save(tiny.Cnn(), file)
    assert listing(tmp_path) == {"thesis.tex": b"years"}


def test_an_exception_in_the_block_changes_nothing(saved: Path) -> None:
    before = listing(saved)

    def fail() -> None:
        with replace_folder(saved) as new:
            (new / "config.json").write_text("{}")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert listing(saved) == before
    assert [p.name for p in saved.parent.iterdir()] == ["m"]


def test_a_link_to_a_folder_stays_a_link(saved: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(saved)
    save(tiny.Cnn(), link)
    assert link.is_symlink()
    load(saved, tiny.Cnn)
