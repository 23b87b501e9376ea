"""Against PEFT: its leaves copied across give its outputs, gradients and merged weights."""

import copy

import pytest
import torch

import corank
from corank.adapters import adapted, merge_adapters, unmerge_adapters
from corank.errors import SiteError
from corank.models import find_sites

from .small import batches, small_model, stir

peft = pytest.importorskip("peft")

NAMES = ["0", "2", "4"]
X = batches(1, dtype=torch.float32)[0]


def theirs(config):
    """PEFT's model with its leaves moved off their start, in float32."""
    torch.manual_seed(0)
    model = peft.get_peft_model(small_model(dtype=torch.float32), config)
    stir(model, 0.05)
    return model


def compare(model, peer, pairs, rtol=1e-4, atol=1e-5):
    """Outputs, gradients (`pairs`: ours, theirs, how theirs looks as ours) and merged weights."""
    for ours, their, look in pairs:
        assert ours.shape == look(their).shape
        with torch.no_grad():
            ours.copy_(look(their))
    x, y = X.clone().requires_grad_(True), X.clone().requires_grad_(True)
    one, two = model(x), peer(y)
    torch.testing.assert_close(one, two, rtol=rtol, atol=atol)
    weight = torch.randn_like(one)
    (one * weight).sum().backward()
    (two * weight).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=rtol, atol=atol)
    for ours, their, look in pairs:
        torch.testing.assert_close(ours.grad, look(their.grad), rtol=rtol, atol=10 * atol)
    merge_adapters(model)
    merged = copy.deepcopy(peer).merge_and_unload()
    for name in NAMES:
        found = adapted(model)[name].merged.weight
        torch.testing.assert_close(found, merged.get_submodule(name).weight, rtol=rtol, atol=atol)
    unmerge_adapters(model)
    torch.testing.assert_close(model(X), one)


def ours(key, **parameters):
    model = small_model(dtype=torch.float32)
    corank.adapt(model, key, **parameters)
    return model, {name: weight.adapter("default") for name, weight in adapted(model).items()}


def layers(peer):
    return {name: peer.base_model.model.get_submodule(name) for name in NAMES}


def same(tensor):
    return tensor


def test_dora():
    config = peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=NAMES)
    peer = theirs(config)
    model, operators = ours("dora", rank=4, alpha=6.0)
    pairs = []
    for name, layer in layers(peer).items():
        low = operators[name].operator.operators[1].operator
        pairs += [
            (low.a, layer.lora_A["default"].weight, same),
            (low.b, layer.lora_B["default"].weight, same),
            (operators[name].m, layer.lora_magnitude_vector["default"].weight, same),
        ]
    compare(model, peer, pairs)


def test_hra():
    """PEFT holds the vectors as columns, u_1 first; here they are rows, in the order x meets them.

    The paper's chain is W H_1 ... H_r in both.
    """
    peer = theirs(peft.HRAConfig(r=4, target_modules=NAMES))
    model, operators = ours("hra", rank=4)
    pairs = [
        (operators[name].operators[1].u, layer.hra_u["default"], lambda u: u.mT.flip(0))
        for name, layer in layers(peer).items()
    ]
    compare(model, peer, pairs)


def test_hra_starts_as_peft_does():
    torch.manual_seed(0)
    peer = peft.get_peft_model(
        small_model(dtype=torch.float32), peft.HRAConfig(r=4, target_modules=NAMES)
    )
    for layer in layers(peer).values():
        u = layer.hra_u["default"].detach()
        assert torch.equal(u[:, 0], u[:, 1])
        assert torch.equal(u[:, 2], u[:, 3])
    _, operators = ours("hra", rank=4)
    for op in operators.values():
        u = op.operators[1].u.detach()
        assert torch.equal(u[0], u[1])
        assert torch.equal(u[2], u[3])
        assert not torch.equal(u[1], u[2])


@pytest.mark.parametrize("scaling", [10.0, 3.0])
def test_fourierft(scaling):
    config = peft.FourierFTConfig(
        n_frequency=50, scaling=scaling, target_modules=NAMES, random_loc_seed=5
    )
    peer = theirs(config)
    model, operators = ours("fourierft", n_frequency=50, scaling=scaling, random_loc_seed=5)
    pairs = []
    for name, layer in layers(peer).items():
        rows, columns = layer.indices["default"]
        assert torch.equal(
            operators[name].operators[1].index.long(), rows * layer.in_features + columns
        )
        pairs.append(
            (operators[name].operators[1].values, layer.fourierft_spectrum["default"], same)
        )
    compare(model, peer, pairs)


def test_bone():
    """PEFT's init_weights="bat" is the first version of the paper, Bone."""
    peer = theirs(peft.MissConfig(r=4, init_weights="bat", target_modules=NAMES))
    model, operators = ours("bone", rank=4)
    pairs = [
        (operators[name].blocks, layer.miss_block["default"], same)
        for name, layer in layers(peer).items()
    ]
    compare(model, peer, pairs)


@pytest.mark.parametrize("rank", [4, 7])
def test_miss(rank):
    """A rank that does not divide the input leaves a rest, whose columns are the first ones."""
    peer = theirs(peft.MissConfig(r=rank, target_modules=NAMES))
    model, operators = ours("bone", rank=rank, variant="miss")
    pairs = [
        (
            operators[name].operators[1].operators[0].weight,
            layer.miss_block["default"],
            lambda m: m.mT,
        )
        for name, layer in layers(peer).items()
    ]
    compare(model, peer, pairs)


def test_lora_fa_is_lora_with_a_frozen_factor():
    """PEFT's LoRA-FA is an optimiser for LoRA; without its preconditioner the two agree."""
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=NAMES)
    peer = theirs(config)
    model, operators = ours("lora_fa", rank=4)
    pairs = []
    for name, layer in layers(peer).items():
        low = operators[name].operators[1].operator
        layer.lora_A["default"].weight.requires_grad_(False)
        assert not low.a.requires_grad
        low.a.copy_(layer.lora_A["default"].weight)
        pairs.append((low.b, layer.lora_B["default"].weight, same))
    compare(model, peer, pairs)


@pytest.mark.parametrize("key", ["lora", "rslora"])
def test_lora(key):
    config = peft.LoraConfig(r=4, lora_alpha=6, use_rslora=key == "rslora", target_modules=NAMES)
    peer = theirs(config)
    model, operators = ours(key, rank=4, alpha=6.0)
    pairs = []
    for name, layer in layers(peer).items():
        low = operators[name].operators[1].operator
        pairs += [
            (low.a, layer.lora_A["default"].weight, same),
            (low.b, layer.lora_B["default"].weight, same),
        ]
    compare(model, peer, pairs)


def test_tiles_that_do_not_fill_a_weight_are_refused_before_anything_is_built():
    recipe = corank.registry.find_method("bone", "adapt").recipe({"rank": 5})
    model = small_model()
    with pytest.raises(SiteError, match="tiles of 5 do not fill it"):
        recipe.count(find_sites(model, "all-linear"))
    with pytest.raises(SiteError, match="tiles of 5 do not fill it"):
        corank.adapt(model, "bone", rank=5)
