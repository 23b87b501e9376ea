"""The bytes that are told before a run are those that a real step allocates."""

import pytest
import torch

import corank
from corank.training import build_optimizer, training_memory
from corank.training.memory import give_values, kept_activations
from tests.verbs.models import tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

BATCH, LENGTH = 4, 32
CASES = [
    ("adamw", {}, None),
    ("galore", {"rank": 4}, None),
    ("fira", {"rank": 4}, None),
    ("qgalore", {"rank": 4}, None),
    ("apollo", {"rank": 4, "state_dtype": "bfloat16"}, None),
    ("adamw", {}, "lora"),
]


def prepared(adapter, empty):
    if empty:
        with torch.device("meta"):
            model = tiny_llama()
    else:
        model = tiny_llama()
    if adapter is not None:
        if empty:
            give_values(model)
        corank.adapt(model, adapter, rank=4)
        if empty:
            model.to("meta")
    return model.train()


def foretold(key="adamw", options=None, adapter=None, **more):
    model = prepared(adapter, empty=True)
    return training_memory(
        model, lambda: build_optimizer(model, key, options=options or {}), BATCH, LENGTH, **more
    )


def tokens():
    return torch.randint(0, 8, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("key", "options", "adapter"), CASES)
def test_a_real_step_allocates_what_was_told(key, options, adapter):
    told = foretold(key, options, adapter)
    model = prepared(adapter, empty=False)
    optimizer = build_optimizer(model, key, options=options)
    kept, _ = kept_activations(model, tokens())
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    optimizer.step()
    held = {id(t): t for t in (*model.parameters(), *model.buffers())}
    state = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
    assert told.weights == sum(t.nbytes for t in held.values())
    assert told.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert told.state == sum(t.nbytes for t in state)
    assert told.activations == pytest.approx(kept, rel=0.05)


def test_adamw_by_its_formula():
    told = foretold()
    parameters = list(tiny_llama().parameters())
    assert told.state == sum(2 * p.nbytes + 4 for p in parameters)


@pytest.mark.parametrize("precision", [None, "bf16"])
def test_checkpointing_keeps_the_inputs_of_blocks(precision):
    plain, told = foretold(precision=precision), foretold(precision=precision, checkpointing=True)
    model = prepared(None, empty=False)
    model.gradient_checkpointing_enable()
    assert told.activations == pytest.approx(kept_activations(model, tokens(), precision)[0], rel=0)
    assert told.activations + 2 * told.recomputed >= 0.95 * plain.activations
    assert told.activations < plain.activations / 2
    assert plain.recomputed == 0


def test_precision_changes_activations_and_nothing_else():
    wide, narrow = foretold(), foretold(precision="bf16")
    assert narrow.activations < wide.activations
    assert (narrow.weights, narrow.gradients, narrow.state) == (
        wide.weights, wide.gradients, wide.state,
    )  # fmt: skip


def test_the_total_is_the_sum():
    told = foretold().to_json()
    assert told.pop("total") == sum(told.values())
