"""AdaLoRA beside PEFT's, step by step.

Named deviations: PEFT scales by alpha / (init_r + 1e-5), so alpha is adjusted here; in the last
tfinal steps it zeroes the gates that lost after every step, where here their ranks are masked and
leave the penalty (so those steps are compared without one). Its `ranknum`, the divisor of the
scale, requires grad; it is kept out of the optimiser here, since no paper trains it.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import corank
from corank.control.schedules import cubic

from .small import batches, loss, operators, small_model

peft = pytest.importorskip("peft")

SETTINGS = {"target_r": 2, "init_r": 4, "tinit": 3, "tfinal": 5, "deltaT": 2, "beta1": 0.8,
            "beta2": 0.9, "orth_reg_weight": 0.3}  # fmt: skip
TOTAL, ALPHA = 30, 8.0


class Task(nn.Module):
    """Gives back an object with a loss: what PEFT adds its penalty to."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return SimpleNamespace(loss=loss(self.net, x))


def theirs(penalty=0.3):
    config = peft.AdaLoraConfig(
        target_modules=["0", "2", "4"],
        lora_alpha=ALPHA,
        total_step=TOTAL,
        **SETTINGS | {"orth_reg_weight": penalty},
    )
    return peft.get_peft_model(Task(small_model()), config).double()


def ours(peer, penalty=0.3):
    model = small_model()
    alpha = ALPHA * SETTINGS["init_r"] / (SETTINGS["init_r"] + 1e-5)
    corank.adapt(model, "adalora", alpha=alpha, **SETTINGS | {"orth_reg_weight": penalty})
    for path, op in operators(model).items():
        layer = peer.base_model.model.net[int(path)]
        low = op.operators[1].operator
        with torch.no_grad():
            low.a.copy_(layer.lora_A["default"])
            low.b.copy_(layer.lora_B["default"])
            low.gate.copy_(layer.lora_E["default"][:, 0])
    return model


@pytest.mark.parametrize("penalty", [0.3, 0.0])
def test_scores_gates_and_ranks_are_pefts_at_every_step(penalty):
    torch.manual_seed(0)
    peer = theirs(penalty)
    model = ours(peer, penalty)
    control = corank.controller(model, total_steps=TOTAL)
    optimizer = torch.optim.Adam(control.parameter_groups(1e-2))
    control.attach(optimizer)
    trained = [p for n, p in peer.named_parameters() if "lora_" in n]
    peer_optimizer = torch.optim.Adam(trained, 1e-2)
    allocator = peer.base_model.rankallocator
    (training,) = control.trainings
    data, last = batches(6), TOTAL - SETTINGS["tfinal"]
    for step in range(1, TOTAL + 1):
        value = loss(model, data[step % 6])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        peer_optimizer.zero_grad()
        peer.base_model(data[step % 6]).loss.backward()
        peer_optimizer.step()
        peer.base_model.update_and_allocate(step)
        if step <= last or not penalty:
            with torch.no_grad():
                bare = peer.base_model.model(data[0]).loss
            torch.testing.assert_close(loss(model, data[0]), bare)
        for path, op in operators(model).items():
            low, layer = op.operators[1].operator, peer.base_model.model.net[int(path)]
            if step <= last:
                torch.testing.assert_close(low.gate, layer.lora_E["default"][:, 0])
                torch.testing.assert_close(low.a, layer.lora_A["default"])
                torch.testing.assert_close(low.b, layer.lora_B["default"])
            if step < last:
                for leaf, name in (("a", "A"), ("b", "B")):
                    key = f"{path}/operators.1.operator.{leaf}"
                    their = f"net.{path}.lora_{name}.default"
                    (their,) = [n for n in allocator.ipt if n.endswith(their)]
                    mean, uncertainty = (
                        training.memory[f"{what}:{key}"] for what in ("sensitivity", "uncertainty")
                    )
                    torch.testing.assert_close(mean, allocator.exp_avg_ipt[their])
                    torch.testing.assert_close(uncertainty, allocator.exp_avg_unc[their])
    pattern = peer.peft_config["default"].rank_pattern
    kept = {n.split(".lora_E")[0].rpartition(".")[2]: flags for n, flags in pattern.items()}
    masks = {p: op.operators[1].operator.mask.tolist() for p, op in operators(model).items()}
    assert masks == kept
    assert sum(map(sum, masks.values())) == SETTINGS["target_r"] * 3


def test_outputs_gradients_and_merged_weights_are_pefts():
    torch.manual_seed(2)
    peer = theirs()
    for name, leaf in peer.named_parameters():
        if "lora_" in name:
            leaf.data.normal_()
    model, x = ours(peer), batches(1)[0]
    value, bare = loss(model, x), peer.base_model.model(x).loss
    torch.testing.assert_close(value, bare)
    value.backward()
    bare.backward()
    held = {path: op.operators[1].operator for path, op in operators(model).items()}
    for path, low in held.items():
        layer = peer.base_model.model.net[int(path)]
        torch.testing.assert_close(low.a.grad, layer.lora_A["default"].grad)
        torch.testing.assert_close(low.b.grad, layer.lora_B["default"].grad)
        torch.testing.assert_close(low.gate.grad, layer.lora_E["default"].grad[:, 0])
    corank.adapters.merge_adapters(model)
    merged = peer.merge_and_unload().net
    for path in held:
        matrix = corank.adapters.adapted(model)[path].dense()
        torch.testing.assert_close(matrix, merged[int(path)].weight)


def test_the_budget_is_pefts():
    allocator = theirs().base_model.rankallocator
    first, last = SETTINGS["tinit"], TOTAL - SETTINGS["tfinal"]
    for step in range(1, TOTAL + 1):
        assert int(cubic(step, 12, 6, first, last)) == allocator.budget_schedule(step)[0]


def test_the_penalty_is_pefts():
    torch.manual_seed(1)
    peer = theirs()
    model = ours(peer)
    x = batches(1)[0]
    with torch.no_grad():
        added = peer.base_model(x).loss - loss(model, x)
    torch.testing.assert_close(corank.controller(model, TOTAL).penalty(), added)


def test_the_defaults_are_pefts():
    config = peft.AdaLoraConfig(total_step=10)
    given = corank.registry.find_method("adalora").parameters
    for name in SETTINGS:
        assert given[name] == getattr(config, name)
    assert given["alpha"] == config.lora_alpha
