from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from corank.calibration import cascade, collect
from corank.errors import DataError, SiteError
from corank.models import find_sites, read
from tests.calibration.oracles import padded_batches
from tests.calibration.test_wanted import shrink
from tests.models.families import make


def test_stages_follow_the_shared_inputs_in_order() -> None:
    model = make("llama")
    stages = cascade(model, find_sites(model), {"gram"}, padded_batches(1), granularity="input")
    names = [[site.name.rpartition(".")[2] for site in stage] for stage in stages]
    layer = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert names == layer * 2


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_a_loop_that_rewrites_nothing_gets_what_collect_gives(family: str, tmp_path: Path) -> None:
    model, data = make(family), padded_batches(3)
    whole, parts = find_sites(model), find_sites(model)
    needs = {"gram", "abs_mean", "output_cosines"}
    collect(model, whole, needs, data)
    expected = {site.name: site.stats for site in whole}
    notes: list[str] = []
    for stage in cascade(
        model, parts, needs, data, targets="compressed", spill=tmp_path, notes=notes
    ):
        assert any(tmp_path.iterdir())
        for site in stage:
            assert site.stats.keys() == expected[site.name].keys()
            for name, value in site.stats.items():
                torch.testing.assert_close(value, expected[site.name][name], rtol=1e-5, atol=1e-7)
    assert not any(tmp_path.iterdir())
    assert bool(notes) == (family == "mixtral")


def test_spilled_files_are_removed_when_the_loop_is_left(tmp_path: Path) -> None:
    model = make("llama")
    walk = cascade(model, find_sites(model), {"gram"}, padded_batches(1), spill=tmp_path)
    next(walk)
    assert any(tmp_path.iterdir())
    walk.close()
    assert not any(tmp_path.iterdir())
    with pytest.raises(DataError, match="is not a folder"):
        next(cascade(model, find_sites(model), {"gram"}, padded_batches(1), spill=tmp_path / "no"))


@pytest.mark.parametrize("count", [2, 8])
def test_experts_aim_at_their_own_outputs_for_the_original_input_of_the_same_tokens(
    count: int,
) -> None:
    model, data = make("mixtral"), padded_batches(count)
    original = copy.deepcopy(model)
    sites = find_sites(model)
    last = "model.layers.1.mlp.experts"
    for stage in cascade(model, sites, {"gram"}, data):
        if stage[0].layer == 1:
            break
        for site in stage:
            if site.kind == "linear":
                shrink(model, site)
    pairs: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    grabbed: list[tuple[torch.Tensor, ...]] = []
    for m in (original, model):
        m.model.layers[1].mlp.experts.register_forward_pre_hook(
            lambda _, args: grabbed.append(args)
        )
    with torch.no_grad():
        for batch in data:
            original(**batch)
            model(**batch)
            current, before = grabbed.pop(), grabbed.pop()
            for t, kept in enumerate(batch["attention_mask"].flatten()):
                for e in current[1][t].tolist() if kept else ():
                    pairs.setdefault(e, []).append((before[0][t], current[0][t]))

    def moments(rows: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """E[x0 x^T] beside E[x0]."""
        total = torch.zeros(32, 33)
        for a, b in rows:
            total += torch.outer(a, torch.cat([b, torch.ones(1)]))
        return total / max(len(rows), 1)

    everything = [pair for rows in pairs.values() for pair in rows]
    experts = [site for site in stage if site.name.startswith(last + ".gate_up_proj")]
    assert len(experts) == 4
    for site in experts:
        rows = pairs.get(site.expert[2], [])
        own = min(len(rows) / 32, 1.0)
        oracle = read(original, site).dense() @ (
            own * moments(rows) + (1 - own) * moments(everything)
        )
        found = torch.cat([site.stats["wanted_cross"], site.stats["wanted_mean"][:, None]], dim=1)
        torch.testing.assert_close(found, oracle, rtol=1e-4, atol=1e-6)
        assert site.stats.keys() == {"gram", "tokens", "wanted_cross", "wanted_mean"}


def test_models_without_one_sequence_of_blocks_are_refused() -> None:
    t5, mlp, llama = make("t5"), make("mlp"), make("llama")
    data = padded_batches(1)
    for model in (t5, mlp):
        with pytest.raises(SiteError, match="block by block needs one sequence") as error:
            next(cascade(model, find_sites(model), {"gram"}, data))
        assert "collect" in str(error.value)
    with pytest.raises(SiteError, match=r"lm_head.*outside the blocks"):
        next(cascade(llama, find_sites(llama, ["lm_head"]), {"gram"}, data))
    with pytest.raises(ValueError, match="no loss for fisher"):
        next(cascade(llama, find_sites(llama), {"fisher"}, data))
    with pytest.raises(ValueError, match="targets must be"):
        next(cascade(llama, find_sites(llama), {"gram"}, data, targets="both"))


def test_a_model_that_does_more_between_its_blocks_is_refused() -> None:
    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block(x) * 2
            return x

    model = Between()
    with pytest.raises(SiteError, match=r"blocks\.1.*does not simply hand"):
        next(cascade(model, find_sites(model), {"gram"}, [torch.randn(3, 4)]))
