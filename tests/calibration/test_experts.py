from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from corank.calibration import collect
from corank.models import find_sites, install, read
from tests.calibration.oracles import padded_batches
from tests.models.families import make


def moment(xs: list[torch.Tensor], n: int) -> torch.Tensor:
    return sum((torch.outer(x, x) for x in xs), torch.zeros(n, n)) / max(len(xs), 1)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
@pytest.mark.parametrize(("rewritten", "count"), [(False, 8), (False, 2), (True, 2)])
def test_each_expert_sees_the_tokens_routed_to_it(family: str, rewritten: bool, count: int) -> None:
    model, data = make(family), padded_batches(count)
    sites = [s for s in find_sites(model, "all-linear") if s.kind == "expert" and s.layer == 0]
    if rewritten:
        install(model, sites[0], read(model, sites[0]))
    gate_up = {s.expert[2]: read(model, s).dense() for s in sites if "gate_up" in s.name}
    experts = model.get_submodule(sites[0].expert[0])
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = experts.register_forward_pre_hook(lambda _, args: seen.append((args[0], args[1])))
    rows: dict[str, list[torch.Tensor]] = {site.name: [] for site in sites}
    with torch.no_grad():
        for batch in data:
            model(**batch)
            hidden, chosen = seen.pop()
            for t, kept in enumerate(batch["attention_mask"].flatten()):
                for e in chosen[t].tolist() if kept else ():
                    rows[f"{sites[0].expert[0]}.gate_up_proj.{e}"].append(hidden[t].double())
                    gate, up = (gate_up[e] @ hidden[t]).chunk(2)
                    inner = (F.silu(gate) * up).double()
                    rows[f"{sites[0].expert[0]}.down_proj.{e}"].append(inner)
    handle.remove()
    notes = collect(model, sites, {"gram", "abs_mean"}, data)
    for site in sites:
        n = site.shape[1]
        assert site.stats["tokens"] == len(rows[site.name])
        same = [s for s in sites if s.expert[1] == site.expert[1]]
        everything = [x for s in same for x in rows[s.name]]
        own = min(len(rows[site.name]) / n, 1.0)

        oracle = own * moment(rows[site.name], n) + (1 - own) * moment(everything, n)
        torch.testing.assert_close(site.stats["gram"].double(), oracle, rtol=1e-4, atol=1e-8)
    few = any(len(rows[s.name]) < s.shape[1] for s in sites)
    assert few or count == 8
    assert few == any("pooled statistics" in note for note in notes)


def test_an_expert_without_tokens_gets_the_pooled_statistics() -> None:
    model, data = make("mixtral"), padded_batches(2)
    with torch.no_grad():
        model.model.layers[0].mlp.gate.weight[3] = 0
        hidden: list[torch.Tensor] = []
        gate = model.model.layers[0].mlp.gate
        gate.register_forward_hook(lambda _, args, out: (out[0], out[1], out[2] % 3))
    model.model.layers[0].mlp.experts.register_forward_pre_hook(
        lambda _, args: hidden.append(args[1])
    )
    sites = [s for s in find_sites(model, "mlp") if s.kind == "expert" and s.layer == 0]
    notes = collect(model, sites, {"gram", "abs_max"}, data)
    assert all(int(chosen.max()) < 3 for chosen in hidden)
    up = [s for s in sites if "gate_up" in s.name]
    assert up[3].stats["tokens"] == 0
    total = sum(s.stats["tokens"] for s in up)
    assert total == 2 * 36
    assert up[3].stats["gram"].shape == (32, 32)
    largest = torch.stack([s.stats["abs_max"] for s in up[:3]]).amax(0)
    assert torch.equal(up[3].stats["abs_max"], largest)
    assert any("3 (0)" in note for note in notes)


@pytest.mark.parametrize("rewritten", [False, True])
def test_cosines_are_of_all_experts_on_all_tokens_that_are_no_padding(rewritten: bool) -> None:
    model, data = make("mixtral"), padded_batches(2)
    sites = [s for s in find_sites(model, "mlp") if s.kind == "expert" and s.layer == 1]
    if rewritten:
        install(model, sites[1], read(model, sites[1]))
    experts = model.get_submodule(sites[0].expert[0])
    seen: list[torch.Tensor] = []
    handle = experts.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    rows = []
    with torch.no_grad():
        for batch in data:
            model(**batch)
            rows += [*seen.pop()[batch["attention_mask"].flatten().bool()]]
    handle.remove()
    weights = {site.expert[1:]: read(model, site).dense().detach() for site in sites}
    oracle = torch.zeros(4, 4)
    for x in rows:
        outputs = []
        for e in range(4):
            gate, up = (weights["gate_up_proj", e] @ x).chunk(2)
            outputs.append(weights["down_proj", e] @ (F.silu(gate) * up))
        oracle += F.cosine_similarity(torch.stack(outputs)[:, None], torch.stack(outputs), dim=2)
    collect(model, sites, {"output_cosines"}, data)
    for site in sites:
        torch.testing.assert_close(
            site.stats["output_cosines"], oracle[site.expert[2]] / len(rows), atol=1e-5, rtol=1e-4
        )
