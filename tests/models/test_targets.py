from __future__ import annotations

import pytest
import torch
from torch import nn

from corank.models import Targets, find_sites, survey

from .families import make


def _names(family: str, targets: Targets) -> set[str]:
    model = make(family)
    sites = find_sites(model, targets)
    order = [site.name for site in survey(model)[0]]
    assert [site.name for site in sites] == sorted((s.name for s in sites), key=order.index)
    return {site.name.split("layers.")[-1] for site in sites}


def test_groups() -> None:
    attention = {f"{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qkvo"}
    mlp = {f"{i}.mlp.{p}_proj" for i in (0, 1) for p in ("gate", "up", "down")}
    assert _names("llama", "attention") == attention
    assert _names("llama", "mlp") == mlp
    assert _names("llama", "all-linear") == attention | mlp
    assert _names("llama", "all") == attention | mlp | {"model.embed_tokens", "lm_head"}
    assert {site.kind for site in find_sites(make("cnn"))} == set()
    assert {site.kind for site in find_sites(make("mixtral"), "mlp")} == {"expert"}
    assert "router" not in {site.role for site in find_sites(make("qwen2_moe"))}
    assert "router" in {site.role for site in find_sites(make("qwen2_moe"), "all")}


def test_endings_and_expressions() -> None:
    queries = {"0.self_attn.q_proj", "1.self_attn.q_proj"}
    assert _names("llama", ["q_proj"]) == queries
    assert _names("llama", "q_proj") == queries
    assert _names("llama", ["self_attn.q_proj", "lm_head"]) == queries | {"lm_head"}
    assert _names("llama", r"re:layers\.1\..*(q|k)_proj$") == {
        "1.self_attn.q_proj",
        "1.self_attn.k_proj",
    }
    assert len(find_sites(make("mixtral"), ["down_proj"])) == 8
    assert len(find_sites(make("mixtral"), ["down_proj.3"])) == 2


def test_a_tied_weight_is_found_under_each_name() -> None:
    for name in ("lm_head", "embed_tokens"):
        (site,) = find_sites(make("qwen2"), [name])
        assert (site.name, site.role, site.tied) == ("model.embed_tokens", "embed", ("lm_head",))


def test_a_dict_gives_overrides_and_skips() -> None:
    targets = {"attention": {"rank": 4}, "q_proj": {"rank": 2}, "re:layers.0": None}
    sites = find_sites(make("llama"), targets)
    assert {site.name.rpartition("layers.")[2]: site.overrides["rank"] for site in sites} == {
        "1.self_attn.q_proj": 2,
        "1.self_attn.k_proj": 4,
        "1.self_attn.v_proj": 4,
        "1.self_attn.o_proj": 4,
    }


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("q_pro", "'q_proj'"),
        ("attentions", "'attention'"),
        ("all_linear", "'all-linear'"),
        ("re:nothing", "unknown target"),
        (["q_proj", "zzz"], "unknown target 'zzz': known: all, "),
        ({"down_pro": None}, "'down_proj'"),
    ],
)
def test_an_unknown_target_names_the_nearest(target: Targets, hint: str) -> None:
    with pytest.raises(ValueError, match="unknown target") as caught:
        find_sites(make("llama"), target)
    assert hint in str(caught.value)


def test_the_generator_depends_on_seed_and_name_only() -> None:
    def draw(model: nn.Module, seed: int) -> dict[str, float]:
        sites = find_sites(model, "all-linear", seed)
        return {site.name: float(torch.rand((), generator=site.generator())) for site in sites}

    model = make("mlp")
    first, again, other = draw(model, 0), draw(model, 0), draw(model, 1)
    assert first == again
    assert len(set(first.values()) | set(other.values())) == 2 * len(first)


def test_sites_of_a_run_share_one_pool_and_no_statistics() -> None:
    first, second = find_sites(make("mlp"))[:2]
    (elsewhere, *_) = find_sites(make("mlp"))
    assert first.pool is second.pool
    assert elsewhere.pool is not first.pool
    assert first.stats is not second.stats
    first.stats["tokens"] = 3.0
    assert float(first.stat("tokens")) == 3.0
    with pytest.raises(ValueError, match=r"'gram' was not collected \(has: tokens\)"):
        first.stat("gram")
