from __future__ import annotations

from pathlib import Path

import pytest
import torch

from corank.calibration import collect, load_statistics, save_statistics
from corank.errors import FormatError
from corank.models import find_sites
from tests.calibration.oracles import padded_batches
from tests.models.families import make


def test_statistics_come_back_as_they_were_shared(tmp_path: Path) -> None:
    model = make("llama")
    sites = find_sites(model)
    collect(model, sites, {"gram", "fisher"}, padded_batches(1))
    save_statistics(model, sites, tmp_path / "s.safetensors")
    again = find_sites(model)
    load_statistics(model, again, tmp_path / "s.safetensors")
    for a, b in zip(sites, again, strict=True):
        assert a.stats.keys() == b.stats.keys()
        assert all(
            torch.equal(torch.as_tensor(a.stats[k]), torch.as_tensor(b.stats[k])) for k in a.stats
        )
    assert again[0].stats["gram"] is again[1].stats["gram"]
    assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]


def test_another_model_or_a_damaged_file_is_refused(tmp_path: Path) -> None:
    model, file = make("llama"), tmp_path / "s.safetensors"
    sites = find_sites(model, ["q_proj"])
    collect(model, sites, {"mean"}, padded_batches(1))
    save_statistics(model, sites, file)
    with pytest.raises(FormatError, match=r"no statistics of .*o_proj"):
        load_statistics(model, find_sites(model, ["o_proj"]), file)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight += 1e-3
    fresh = find_sites(model, ["q_proj"])
    with pytest.raises(FormatError, match="another model"):
        load_statistics(model, fresh, file)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(FormatError, match="cannot be read"):
        load_statistics(model, fresh, file)
    with pytest.raises(FormatError, match="cannot be read"):
        load_statistics(model, fresh, tmp_path / "missing")
    assert not fresh[0].stats


def test_a_failed_save_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, file = make("mlp"), tmp_path / "s.safetensors"
    sites = find_sites(model)
    collect(model, sites, {"mean"}, [torch.randn(4, 12)])
    save_statistics(model, sites, file)
    old = file.read_bytes()

    def half(tensors: dict, path: Path, metadata: dict) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("corank.calibration.store.save_file", half)
    with pytest.raises(OSError, match="no space"):
        save_statistics(model, sites, file)
    assert file.read_bytes() == old
    assert len(list(tmp_path.iterdir())) == 1
