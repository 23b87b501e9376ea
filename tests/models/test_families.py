"""Every family of models: what is found in it, and that replacing it changes nothing."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from corank.errors import SiteError
from corank.models import (
    Site,
    densify,
    install,
    is_rewritten,
    read,
    read_bias,
    require_finite,
    stacks,
    survey,
)
from corank.operators import Dense, Product, Sum

from .families import FAMILIES, call, full_rank, half_rank, make

EVERY = pytest.mark.parametrize("family", FAMILIES)
HF = [name for name in FAMILIES if name not in ("cnn", "mlp")]
#: Compiled in every run; the others, which take 5 s each, with the slow tests.
COMPILED = ("llama", "gpt2", "mixtral", "cnn", "mlp")


@EVERY
def test_finds_the_sites_of_every_role(family: str) -> None:
    expected = FAMILIES[family]
    sites, refused = survey(make(family))
    found = Counter(site.role for site in sites)
    assert ", ".join(f"{role} {found[role]}" for role in sorted(found)) == expected.roles
    assert tuple(refusal.name for refusal in refused) == expected.refused
    assert [site.tied for site in sites if site.tied] == [expected.tied] * bool(expected.tied)


@EVERY
def test_numbers_the_layers(family: str) -> None:
    model = make(family)
    found = stacks(model)
    assert tuple(len(stack.blocks) for stack in found) == FAMILIES[family].stacks
    for site in survey(model)[0]:
        inside = [
            number
            for stack in found
            for number, (path, _) in enumerate(stack.blocks)
            if site.name.startswith(path + ".")
        ]
        assert [site.layer] == (inside or [None])


@EVERY
def test_the_parts_of_operators_are_no_blocks(family: str) -> None:
    model = make(family)
    before, (sites, _) = stacks(model), survey(model)
    for site in sites:
        factors = full_rank(read(model, site))
        pair = [Product(Dense(factors.b.detach()), Dense(factors.a.detach())) for _ in range(2)]
        install(model, site, Sum(*pair))
    for mine, theirs in zip(stacks(model), before, strict=True):
        assert [path for path, _ in mine.blocks] == [path for path, _ in theirs.blocks]


@EVERY
@torch.no_grad()
def test_reads_the_matrix_that_the_module_applies(family: str) -> None:
    model = make(family)
    sites, _ = survey(model)
    seen: dict[str, tuple[Any, Any, Any]] = {}
    for path in {path for site in sites for path in (site.path, *site.tied)}:
        hook = _record(seen, path)
        model.get_submodule(path).register_forward_hook(hook, with_kwargs=True)
    call(model, family)
    for site in sites:
        if site.kind != "expert":
            places = (site.path, *site.tied)  # T5 never calls "shared", only what is tied to it
            (x, *_), _, y = next(seen[path] for path in places if path in seen)
            torch.testing.assert_close(_apply(model, site, x), y, atol=1e-5, rtol=1e-4)
    for path in {site.path for site in sites if site.kind == "expert"}:
        args, kwargs, y = seen[path]
        of = {site.name: read(model, site).dense() for site in sites}
        torch.testing.assert_close(
            _experts(of, path, model, *args, **kwargs), y, atol=1e-5, rtol=1e-4
        )


@EVERY
@torch.no_grad()
def test_full_rank_changes_nothing_and_densify_brings_the_model_back(family: str) -> None:
    model = make(family)
    before, classes, state = call(model, family), _classes(model), model.state_dict()
    trains = {name: p.requires_grad for name, p in model.named_parameters()}
    ties = dict(getattr(model, "all_tied_weights_keys", {}))
    sites, _ = survey(model)
    for site in sites:
        assert not is_rewritten(model, site)
        install(model, site, full_rank(read(model, site)))
    close = {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(call(model, family), before, **close)
    assert all(is_rewritten(model, site) for site in sites)
    again, _ = survey(model)
    assert [_facts(site) for site in again] == [_facts(site) for site in sites]

    for site in sites:
        densify(model, site)
    torch.testing.assert_close(call(model, family), before, **close)
    assert _classes(model) == classes
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trains
    assert getattr(model, "all_tied_weights_keys", {}) == ties
    restored = model.state_dict()
    assert list(restored) == list(state)
    for name, tensor in restored.items():
        assert tensor.is_contiguous()
        torch.testing.assert_close(tensor, state[name], **close)
    assert not any(is_rewritten(model, site) for site in sites)


@pytest.mark.parametrize(
    "family",
    [n if n in COMPILED else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES],
)
@torch.no_grad()
def test_compiles_without_a_graph_break(family: str) -> None:
    model = make(family)
    _rewrite(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(call(compiled, family), call(model, family), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", HF)
def test_gradient_checkpointing_gives_the_same_gradients(family: str) -> None:
    model = make(family)
    _rewrite(model)
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("operator" in name or "experts" in name)
    plain = _gradients(model, family)
    assert all(gradient is not None for gradient in plain.values())
    if not model.supports_gradient_checkpointing:
        pytest.skip("the family does not checkpoint")
    _checkpoint(model)
    for name, gradient in _gradients(model, family).items():
        torch.testing.assert_close(gradient, plain[name], atol=1e-6, rtol=1e-4)


@EVERY
def test_counts_without_weights(family: str) -> None:
    with torch.device("meta"):
        model = FAMILIES[family].build()
    sites, refused = survey(model)
    there, refused_there = survey(make(family))
    assert [_facts(site) for site in sites] == [_facts(site) for site in there]
    assert refused == refused_there
    for site in sites:
        op = read(model, site)
        assert op.numel() == site.shape[0] * site.shape[1]
        with pytest.raises(SiteError, match="meta device"):
            require_finite(model, site)
        install(model, site, half_rank(op))
    assert {p.device.type for p in model.parameters()} == {"meta"}


@EVERY
@torch.no_grad()
def test_runs_in_bfloat16_and_under_autocast(family: str) -> None:
    model = make(family)
    reference = call(model, family)
    _rewrite(model, full_rank)
    plain = make(family)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = call(plain, family), call(model, family)
    assert found.dtype == expected.dtype
    scale = float(reference.abs().max())
    torch.testing.assert_close(found.float(), reference, atol=0.06 * scale, rtol=0.1)
    half = call(model.bfloat16(), family)
    assert half.dtype == call(plain.bfloat16(), family).dtype
    torch.testing.assert_close(half.float(), reference, atol=0.06 * scale, rtol=0.1)


@EVERY
@torch.no_grad()
def test_copies_and_reloads_its_state(family: str) -> None:
    model = make(family)
    _rewrite(model)
    expected = call(model, family)
    twin = copy.deepcopy(model)
    other = make(family)
    for parameter in other.parameters():
        parameter.zero_()
    _rewrite(other)
    assert not any("weight" in name and "operator" in name for name in model.state_dict())
    other.load_state_dict(model.state_dict())
    for parameter in model.parameters():
        parameter.zero_()
    torch.testing.assert_close(call(twin, family), expected)
    torch.testing.assert_close(call(other, family), expected)
    for site in survey(twin)[0]:
        densify(twin, site)
    torch.testing.assert_close(call(twin, family), expected, atol=1e-5, rtol=1e-4)


def _record(seen: dict[str, tuple[Any, Any, Any]], path: str) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seen[path] = (args or tuple(kwargs.values())[:1], {} if not args else kwargs, output)

    return hook


def _apply(model: nn.Module, site: Site, x: Tensor) -> Tensor:
    """What the site's module makes of x, by its matrix and bias alone."""
    matrix, bias = read(model, site).dense(), read_bias(model, site)
    module: Any = model.get_submodule(site.path)
    assert matrix.shape == site.shape
    assert site.bias == (bias is not None)
    if site.kind == "embedding":
        scale = module._buffers.get("embed_scale")
        return matrix[x] if scale is None else matrix[x] * scale
    if site.kind != "conv":
        return x @ matrix.T + (0 if bias is None else bias)
    x = x[:, :, None] if isinstance(module, nn.Conv1d) else x  # one row of pixels
    one = isinstance(module, nn.Conv1d)
    kernel, stride, dilation = (
        ((1, *v) if one else v) for v in (module.kernel_size, module.stride, module.dilation)
    )
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, [*module._reversed_padding_repeated_twice, 0, 0][:4], mode)
    patches = F.unfold(x, kernel, dilation, stride=stride)  # (N, in * taps, places)
    size = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, d, s in zip(x.shape[2:], kernel, dilation, stride, strict=True)
    ]
    y = (matrix @ patches).unflatten(-1, size)
    y = y if bias is None else y + bias[:, None, None]
    return y[:, :, 0] if one else y


def _experts(
    of: dict[str, Tensor], path: str, model: nn.Module, x: Tensor, index: Tensor, weights: Tensor
) -> Tensor:
    y = torch.zeros_like(x)
    act_fn: Any = model.get_submodule(path).act_fn
    for token in range(len(x)):
        for choice, expert in enumerate(index[token].tolist()):
            gate, up = (of[f"{path}.gate_up_proj.{expert}"] @ x[token]).chunk(2)
            inner = of[f"{path}.down_proj.{expert}"] @ (act_fn(gate) * up)
            y[token] += weights[token, choice] * inner
    return y


def _rewrite(model: nn.Module, by: Any = half_rank) -> None:
    for site in survey(model)[0]:
        install(model, site, by(read(model, site)))


def _checkpoint(model: Any) -> None:
    renamed = getattr(model, "activation_checkpointing_enable", None)  # transformers 5.23
    (renamed or model.gradient_checkpointing_enable)({"use_reentrant": False})


def _gradients(model: nn.Module, family: str) -> dict[str, Tensor | None]:
    model.zero_grad()
    torch.manual_seed(2)  # dropout
    call(model, family).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def _classes(model: nn.Module) -> dict[str, type]:
    return {name: type(module) for name, module in model.named_modules()}


def _facts(site: Site) -> tuple[object, ...]:
    return site.name, site.role, site.layer, site.shape, site.bias, site.kind, site.tied
