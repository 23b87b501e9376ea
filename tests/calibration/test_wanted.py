"""The outputs that sites are to give, against whole models and what is known of their wiring."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from corank.calibration import cascade
from corank.models import Site, find_sites, install, read
from corank.operators import Dense
from tests.calibration.oracles import padded_batches
from tests.models.families import make

Run = dict[str, tuple[Tensor, Tensor]]

#: By family: the blocks, and for each site in a residual sum what else is in that sum: "" is the
#: block's input, a name the output of that module of the block.
RESIDUALS: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "bert": (
        "bert.encoder.layer",
        {"attention.output.dense": ("",), "output.dense": ("attention.output.LayerNorm",)},
    ),
    "llama": (
        "model.layers",
        {"self_attn.o_proj": ("",), "mlp.down_proj": ("", "self_attn.o_proj")},
    ),
    "gpt2": ("transformer.h", {"attn.c_proj": ("",), "mlp.c_proj": ("", "attn.c_proj")}),
    "gpt_neox": (
        "gpt_neox.layers",
        {
            "attention.dense": ("", "mlp.dense_4h_to_h"),
            "mlp.dense_4h_to_h": ("", "attention.dense"),
        },
    ),
}


def shrink(model: nn.Module, site: Site) -> None:
    """A rewrite that hurts: rank a quarter."""
    w = read(model, site).dense().detach()
    u, s, v = torch.linalg.svd(w, full_matrices=False)
    r = max(1, min(w.shape) // 4)
    install(model, site, Dense((u[:, :r] * s[:r]) @ v[:r]))


def rows_of(model: nn.Module, data: list[dict[str, Tensor]]) -> Run:
    """Inputs and outputs (tokens, features) of every module of the model, run whole."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def hook(name: str, mask: Tensor) -> Any:
        def after(_: nn.Module, args: Any, kwargs: Any, y: Any) -> None:
            x = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
            y = y[0] if isinstance(y, tuple) else y
            if isinstance(y, Tensor) and x.shape[:2] == y.shape[:2] == mask.shape:
                seen.setdefault(name, []).append((x[mask].clone(), y[mask].clone()))

        return after

    model = copy.deepcopy(model).eval()
    for batch in data:
        mask = batch["attention_mask"].bool()
        handles = [
            module.register_forward_hook(hook(name, mask), with_kwargs=True)
            for name, module in model.named_modules()
            if not isinstance(module, nn.ModuleList) and name
        ]
        with torch.no_grad():
            model(**batch)
        for handle in handles:
            handle.remove()
    return {
        name: (torch.cat([x for x, _ in found]), torch.cat([y for _, y in found]))
        for name, found in seen.items()
        if len({x.shape[1:] for x, _ in found}) == 1
    }


def wanted(family: str, site: Site, original: Run, current: Run) -> Tensor:
    """t = y0 + (r0 - r), with r summed up term by term."""
    t = original[site.name][1]
    blocks, residuals = RESIDUALS[family]
    _, _, rest = site.name.partition(f"{blocks}.")
    number, _, inner = rest.partition(".")
    block = f"{blocks}.{number}"
    for term in residuals.get(inner, ()):
        place, side = (f"{block}.{term}", 1) if term else (block, 0)
        t = t + original[place][side] - current[place][side]
    return t


def inside(model: nn.Module, family: str) -> list[Site]:
    prefix = RESIDUALS[family][0]
    return [site for site in find_sites(model) if site.name.startswith(prefix)]


@pytest.mark.parametrize("family", list(RESIDUALS))
@pytest.mark.parametrize("granularity", ["block", "input"])
def test_each_stage_equals_running_both_models_whole(family: str, granularity: Any) -> None:
    model, data = make(family).double().train(), padded_batches(2)
    before, sites = rows_of(model, data), inside(model, family)
    seen: list[str] = []
    corrections = 0
    for stage in cascade(model, sites, {"gram", "mean"}, data, granularity=granularity):
        now = rows_of(model, data)
        for site in stage:
            x, t = now[site.name][0], wanted(family, site, before, now)
            expected = {
                "gram": x.T @ x / len(x),
                "mean": x.mean(0),
                "wanted_cross": t.T @ x / len(x),
                "wanted_mean": t.mean(0),
            }
            assert site.stats.keys() == expected.keys() | {"tokens"}
            assert site.stats["wanted_cross"].shape == site.shape
            for name, value in expected.items():
                tolerance = {"rtol": 1e-6, "atol": 2e-7 * float(value.abs().max())}
                if name == "gram":  # whose products are in float32
                    tolerance = {"rtol": 1e-5, "atol": 1e-6}
                torch.testing.assert_close(site.stats[name].double(), value, **tolerance)
            corrections += not torch.allclose(t, before[site.name][1], rtol=1e-3, atol=1e-3)
        assert not any(site.stats for site in sites if site.name in seen)
        for site in stage:
            shrink(model, site)
            seen.append(site.name)
    assert sorted(seen) == sorted(site.name for site in sites)
    assert corrections >= 2  # the residual stream had something to correct
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_where_nothing_was_rewritten_the_site_is_to_give_what_it_gives(family: str) -> None:
    model, data = make(family).double(), padded_batches(2)
    rows, sites = rows_of(model, data), inside(model, family)
    for stage in cascade(model, sites, {"gram"}, data):
        for site in stage:
            x, y = rows[site.name]
            for name, value in {"cross": y.T @ x / len(x), "mean": y.mean(0)}.items():
                found = site.stats[f"wanted_{name}"].double()
                torch.testing.assert_close(found, value, rtol=1e-6, atol=1e-7)


FOUND = {
    "bert": ["input of {}.attention.output.LayerNorm", "input of {}.output.LayerNorm"],
    "llama": ["input of {}.post_attention_layernorm", "output of {}"],
    "gpt2": ["input of {}.ln_2", "output of {}"],
    "gpt_neox": ["output of {}", "output of {}"],
    "opt": ["input of {}.final_layer_norm", "output of {}"],
    "qwen3": ["input of {}.post_attention_layernorm", "output of {}"],
    "qwen2_moe": ["input of {}.post_attention_layernorm", None],  # its shared expert is gated
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", list(FOUND))
def test_the_residual_sum_is_found(family: str, dtype: torch.dtype) -> None:
    model = make(family).to(dtype)
    stage = next(cascade(model, _first_block(model), {"mean"}, padded_batches(1)))
    block = next(s for s in stage if s.role == "o").name.split(".0.")[0] + ".0"
    found = {s.role: s.pool["residual_sums"][s.name] for s in stage}
    expected = [None if text is None else text.format(block) for text in FOUND[family]]
    assert [found.pop("o"), found.pop("down")] == expected
    assert set(found.values()) == {None}


def test_an_output_that_is_scaled_before_it_is_added_gets_no_correction() -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    config = GraniteConfig(**sizes, num_attention_heads=2, residual_multiplier=0.5)
    model, data = GraniteForCausalLM(config).eval().double(), padded_batches(1)
    before = rows_of(model, data)
    stages = cascade(model, find_sites(model), {"mean"}, data)
    for site in next(stages):
        assert site.pool["residual_sums"][site.name] is None
        shrink(model, site)
    now = rows_of(model, data)
    for site in next(stages):
        x, t = now[site.name][0], before[site.name][1]
        found = site.stats["wanted_cross"].double()
        torch.testing.assert_close(found, t.T @ x / len(x), rtol=1e-6, atol=1e-7)


def test_convolutions_pair_their_patches_with_their_outputs() -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(2)
            )

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    torch.manual_seed(0)
    model, x = Stack().double(), torch.randn(3, 4, 6, dtype=torch.float64)
    (site,) = next(cascade(model, find_sites(model, "all"), {"gram"}, [x]))
    conv = model.blocks[0][0]
    total = torch.zeros(4, 12, dtype=torch.float64)
    padded = nn.functional.pad(x, (1, 1))
    for n in range(3):
        for p in range(6):
            patch = padded[n, :, p : p + 3].flatten()
            total += torch.outer(conv.weight.detach().flatten(1) @ patch + conv.bias, patch)
    torch.testing.assert_close(site.stats["wanted_cross"].double(), total / 18, rtol=1e-6, atol=0)


def _first_block(model: nn.Module) -> list[Site]:
    return [s for s in find_sites(model) if s.layer == 0 and s.kind != "expert"]
