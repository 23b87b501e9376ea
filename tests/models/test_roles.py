"""Names and shapes of models outside the families that are built."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from corank.models import blocks, stacks, survey
from corank.models.roles import Place, infer_role

NAMES = {
    "layers.0.attention.wq": "q",
    "layers.0.attention.wo": "o",
    "layers.0.feed_forward.w1": "gate",
    "layers.0.feed_forward.w3": "up",
    "layers.0.feed_forward.w2": "down",
    "h.0.self_attention.query_key_value": "qkv",
    "blocks.0.attn.qkv": "qkv",
    "blocks.0.attn.proj": "o",
    "down_blocks.0.attn1.to_q": "q",
    "down_blocks.0.attn1.to_out.0": "o",
    "layers.0.block_sparse_moe.gate": "router",
    "layers.0.mlp.experts.3.gate_proj": "gate",
    "layers.0.mlp.shared_expert_gate": "router",
    "layers.0.mamba.in_proj": "in_proj",
    "layers.0.shared_mlp.input_linear": "gate_up",
    "layers.0.shared_mlp.output_linear": "down",
    "score": "head",
    "qa_outputs": "head",
    "generator.proj": "head",
    "pooler.dense": "other",
    "encoder.layer.0.attention.output.dense": "o",
    "encoder.layer.0.output.dense": "down",
    "encoder.layer.0.intermediate.dense": "up",
}


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    place = Place(name, "linear", (8, 8), in_block="0" in name)
    assert infer_role(place) == NAMES[name]


@pytest.mark.parametrize(
    ("path", "shape", "role"),
    [
        ("layers.0.attn.combined", (24, 8), "qkv"),
        ("layers.0.attn.combined", (16, 8), "other"),
        ("layers.0.ffn.first", (32, 8), "up"),
        ("layers.0.ffn.second", (8, 32), "down"),
        ("layers.0.ffn.mixing", (8, 8), "other"),
        ("layers.0.adapter", (32, 8), "other"),
    ],
)
def test_shapes_decide_where_names_do_not(path: str, shape: tuple[int, int], role: str) -> None:
    assert infer_role(Place(path, "linear", shape, in_block=True)) == role
    assert infer_role(Place(path, "linear", shape, in_block=False)) == "other"


def test_common_names_mean_nothing_outside_a_block() -> None:
    assert infer_role(Place("fc1", "linear", (32, 8), in_block=False)) == "other"
    assert infer_role(Place("layers.0.fc1", "linear", (32, 8), in_block=True)) == "up"


def test_transposed_layers_have_the_roles_of_linear_ones() -> None:
    place = Place("h.0.attn.c_attn", "conv1d_transposed", (96, 32), in_block=True)
    assert infer_role(place) == "qkv"


def _block() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU())


def test_stacks_are_the_outermost_lists_of_blocks() -> None:
    nested = nn.ModuleList([nn.ModuleDict({"experts": nn.ModuleList([_block(), _block()])})])
    model = nn.ModuleDict(
        {
            "encoder": nn.Sequential(_block(), _block()),
            "decoder": nested,
            "heads": nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 3)]),
            "empty": nn.ModuleList(),
            "mixed": nn.Sequential(_block(), nn.Linear(4, 4)),
        }
    )
    assert [stack.name for stack in stacks(model)] == ["encoder", "decoder"]
    assert [name for name, _ in blocks(model)] == ["encoder.0", "encoder.1", "decoder.0"]
    layers = {site.name: site.layer for site in survey(model)[0]}
    assert layers["encoder.1.0"] == 1
    assert layers["decoder.0.experts.1.0"] == 0
    assert layers["heads.1"] is None
    assert layers["mixed.1"] is None


def test_the_models_own_ends_beat_names() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.q_proj = nn.Embedding(9, 4), nn.Linear(4, 9)

        def get_input_embeddings(self) -> nn.Module:
            return self.first

        def get_output_embeddings(self) -> nn.Module:
            return self.q_proj

    with torch.device("meta"):
        sites, _ = survey(Model())
    assert {site.name: site.role for site in sites} == {"first": "embed", "q_proj": "head"}
