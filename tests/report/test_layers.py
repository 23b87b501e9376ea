"""How fast layers are beside dense ones, and that a slow one is named."""

import copy

import pytest
import torch
from torch import nn

import corank
from corank.models import find_sites, install
from corank.operators import Dense
from corank.report import layers
from corank.report.layers import measure_layers, slower_layers


@pytest.fixture
def pair():
    original = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 24), nn.Linear(24, 16))
    compressed = copy.deepcopy(original)
    corank.compress(compressed, "svd", rank=2, targets=["0", "3"])
    return original, compressed


def test_one_of_each_kind_and_shape_is_timed(pair, monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(layers, "perf_counter", lambda: float(next(clock)))
    rows = measure_layers(*pair, ["0", "3", "2", "missing"])
    assert rows == [
        {"operator": "LowRank", "shape": [16, 24], "sites": 2, "speed": {"1": 1.0, "256": 1.0}}
    ]


def test_what_stayed_dense_is_left_out(pair):
    original, compressed = pair
    (kept,) = find_sites(compressed, ["2"])
    install(compressed, kept, Dense(original[2].weight.detach().clone()))
    assert type(compressed[2]) is not nn.Linear
    assert [row["operator"] for row in measure_layers(*pair, ["0", "2", "3"], 1)] == ["LowRank"]


def test_speed_is_the_dense_seconds_over_the_layers(pair, monkeypatch):
    calls = []
    now = [0.0]

    def took(seconds):
        def hook(module, inputs, output):
            now[0] += seconds
            calls.append(inputs[0].shape[0])

        return hook

    monkeypatch.setattr(layers, "perf_counter", lambda: now[0])
    original, compressed = pair
    original[0].register_forward_hook(took(1.0))
    compressed[0].register_forward_hook(took(4.0))
    (row,) = measure_layers(original, compressed, ["0"], repeats=3)
    assert row["speed"] == {"1": 0.25, "256": 0.25}
    assert calls == [1] * 8 + [256] * 8


def test_what_is_slower_than_dense_is_said():
    fast = {"operator": "LowRank", "shape": [8, 8], "sites": 3, "speed": {"1": 1.2, "256": 1.5}}
    slow = fast | {"operator": "Quantised", "speed": {"1": 2.0, "256": 0.5}}
    (sentence,) = slower_layers([fast, slow])
    assert "Quantised of 8 x 8 (3 sites)" in sentence
    assert "0.50 times on 256 rows" in sentence
    assert "on 1 rows" not in sentence


def test_embeddings_and_convolutions_are_left_out():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4))
    other = copy.deepcopy(model)
    corank.compress(other, "svd", rank=1, targets="all")
    assert [row["sites"] for row in measure_layers(model, other, ["0", "1"], 1)] == [1]
    assert torch.is_tensor(other(torch.tensor([1])))
