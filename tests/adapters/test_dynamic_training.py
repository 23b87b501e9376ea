"""Methods that act while training: in the Trainer, resumed, compiled, in half precision."""

import pytest
import torch

import corank
from tests.verbs.models import tiny_llama

from .small import batches, loss, small_model
from .test_training import require_equal, train, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

METHODS = {
    "adalora": {"target_r": 1, "init_r": 3, "tfinal": 2},
    "aflora": {"rank": 2, "interval": 1, "final": 0.2},
    "diffora": {"rank": 2},
    "dylora": {"rank": 4},
    "prilora": {"first": 2, "last": 4, "depth": 2, "interval": 2},
    "relora": {"rank": 2, "every": 2, "cycles": 4, "prune": 0.5, "warmup": 2},
    "roselora": {"rank": 2, "last": 5},
    "shears": {"rank": 4, "space": (4, 2, 1), "sparsity": 0.0},
    "sora": {"rank": 3, "threshold": (1e-3, 1e-1)},
}
every = pytest.mark.parametrize("method", METHODS)


def adapted(method, model=None):
    model = tiny_llama(attention_dropout=0.1) if model is None else model
    corank.adapt(model, method, targets=["q_proj", "v_proj", "down_proj"], **METHODS[method])
    return model


@every
def test_the_trainer_resumes_exactly(tmp_path, method):
    model = adapted(method)
    trainer(model, tmp_path).train()
    again = adapted(method)
    trainer(again, tmp_path / "b").train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    require_equal(model, again)
    flags = [p.requires_grad for p in model.parameters()]
    assert flags == [p.requires_grad for p in again.parameters()]


@pytest.mark.parametrize("method", ["dylora", "shears"])
def test_a_drawn_rank_survives_a_controller_made_after_the_model_was_loaded(method):
    def begin():
        model = small_model()
        corank.adapt(model, method, **METHODS[method])
        return model, corank.controller(model, total_steps=9)

    model, control = begin()
    optimizer = torch.optim.SGD(control.parameter_groups(1e-3))
    control.attach(optimizer)
    for batch in batches(5):
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
        again, second = begin()
        again.load_state_dict(model.state_dict())
        other = torch.optim.SGD(second.parameter_groups(1e-3))
        second.attach(other)  # which draws a rank
        other.load_state_dict(optimizer.state_dict())
        require_equal(model, again)


@every
def test_a_half_precision_model_trains(method):
    losses = train(adapted(method, tiny_llama().bfloat16()))
    assert losses[-1] < losses[0]


@every
def test_the_forward_compiles_without_a_graph_break(method):
    torch._dynamo.reset()
    layer = adapted(method).model.layers[0].self_attn.q_proj
    x = torch.randn(3, 32)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))
