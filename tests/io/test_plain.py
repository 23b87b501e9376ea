from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from corank.errors import FormatError
from corank.io import load, save
from corank.io.record import FORMAT, seal
from corank.models import find_sites, install
from corank.operators import LowRank
from tests.io import tiny

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = tiny.Cnn()
    model(IMAGES)  # moves the batch norm's buffers
    tiny.compress(model, "all")
    return model.eval()


def test_a_module_loads_as_the_same_function(model: nn.Module, tmp_path: Path) -> None:
    save(model, tmp_path / "m", max_shard_size=500)
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    again = load(tmp_path / "m", tiny.Cnn).eval()
    torch.testing.assert_close(again(IMAGES), model(IMAGES), rtol=0, atol=1e-6)
    assert list(again.state_dict()) == list(model.state_dict())
    grads = [p.requires_grad for p in model.parameters()]
    assert [p.requires_grad for p in again.parameters()] == grads


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    save(Twice(), tmp_path / "dense")
    dense = load(tmp_path / "dense", Twice)
    assert dense.two.weight is dense.one.weight
    model = Twice()
    install(model, find_sites(model)[0], LowRank(torch.randn(6, 2), torch.randn(2, 6)))
    assert model.two.operator is model.one.operator
    save(model, tmp_path / "m")
    again = load(tmp_path / "m", Twice)
    assert again.two.operator is again.one.operator
    x = torch.randn(3, 6)
    torch.testing.assert_close(again(x), model(x))


def test_another_module_is_refused(model: nn.Module, tmp_path: Path) -> None:
    save(model, tmp_path / "m")
    with pytest.raises(FormatError, match=r"features\.0.*12x27.*16x27"):
        load(tmp_path / "m", partial(tiny.Cnn, width=16))
    with pytest.raises(FormatError, match="no such module"):
        load(tmp_path / "m", lambda: nn.Sequential(nn.Linear(3, 3)))
    save(tiny.Cnn(), tmp_path / "dense")
    with pytest.raises(FormatError, match=r"features\.0\.bias is \(12,\) in the files and \(16,\)"):
        load(tmp_path / "dense", partial(tiny.Cnn, width=16))
    with pytest.raises(FormatError, match="not in the files"):
        load(tmp_path / "dense", lambda: nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(TypeError, match="builder"):
        load(tmp_path / "dense", dict)  # type: ignore[arg-type]


def test_damage_is_refused(model: nn.Module, tmp_path: Path) -> None:
    save(model, tmp_path / "m")
    file, skeleton = tmp_path / "m" / "model.safetensors", tmp_path / "m" / "corank.json"
    whole, text = file.read_bytes(), skeleton.read_text()
    file.write_bytes(whole[:-10])
    with pytest.raises(FormatError, match="truncated"):
        load(tmp_path / "m", tiny.Cnn)
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FormatError, match="edited or damaged"):
        load(tmp_path / "m", tiny.Cnn)
    file.write_bytes(whole)
    skeleton.write_text(text[:-30])
    with pytest.raises(FormatError, match="truncated"):
        load(tmp_path / "m", tiny.Cnn)
    skeleton.write_text(text.replace('"linear"', '"embedding"'))
    with pytest.raises(FormatError, match="edited"):
        load(tmp_path / "m", tiny.Cnn)
    skeleton.write_text(json.dumps(seal(json.loads(text) | {"format": FORMAT + 1})))
    with pytest.raises(FormatError, match="upgrade"):
        load(tmp_path / "m", tiny.Cnn)
    skeleton.unlink()
    with pytest.raises(FormatError, match="no saved model"):
        load(tmp_path / "m", tiny.Cnn)


def test_builders_are_asked_for_where_they_are_needed(model: nn.Module, tmp_path: Path) -> None:
    save(model, tmp_path / "m")
    with pytest.raises(ValueError, match="builder"):
        load(tmp_path / "m")
    save(tiny.bert(), tmp_path / "t")
    with pytest.raises(ValueError, match="leave it out"):
        load(tmp_path / "t", tiny.bert)


def test_models_without_values_are_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        empty = tiny.Cnn()
    with pytest.raises(ValueError, match="meta device"):
        save(empty, tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("size", ["", "big", "5XB", 0, "-1GB"])
def test_shard_sizes_are_checked(size: str | int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_shard_size"):
        save(tiny.Cnn(), tmp_path / "m", max_shard_size=size)
