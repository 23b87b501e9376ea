"""Disks that fill up, gradients that are not finite, masked models that resume."""

import pytest
import torch

from corank.errors import FormatError
from corank.training import Masked, build_optimizer, split_examples, train
from corank.training.skipping import LONGEST, Skipping
from tests.io.test_folder import largest_file
from tests.verbs.models import tiny_llama

from .test_reading import Bracketed
from .test_training import _stop_after, rows, run

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    from transformers import TrainerCallback

    whole, _ = run(tmp_path / "whole", tiny_llama())
    limits = largest_file(3000)

    class Full(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 5:
                limits.__enter__()

    monkeypatch.setattr("corank.training.run._teller", lambda progress: Full())
    try:
        with pytest.raises(OSError, match=r"checkpoint of step 6 .*checkpoint-4 is as it was"):
            run(tmp_path / "cut", tiny_llama())
    finally:
        limits.__exit__(None, None, None)
    monkeypatch.undo()
    assert not (tmp_path / "cut" / "checkpoint-6").exists()
    again, _ = run(tmp_path / "cut", tiny_llama(), resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_checkpoint_of_fewer_processes_is_passed_over(tmp_path, monkeypatch):
    run(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(FormatError, match="no checkpoint to resume from"):
        run(tmp_path, resume=True)


@pytest.mark.parametrize("key", ["adamw", "galore"])
def test_a_step_that_is_not_finite_changes_nothing(key):
    model = tiny_llama()
    optimizer = build_optimizer(model, key, lr=0.1, weight_decay=0.1)
    skipping = Skipping()
    skipping.attach(optimizer)
    ids = torch.arange(8)[None]

    def step(factor):
        optimizer.zero_grad()
        (factor * model(input_ids=ids, labels=ids).loss).backward()
        optimizer.step()

    step(1.0)
    before = [p.clone() for p in model.parameters()]
    state = [t.clone() for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
    with pytest.warns(UserWarning, match="this step was skipped"):
        step(float("nan"))
    now = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
    assert all(map(torch.equal, before, model.parameters()))
    assert all(map(torch.equal, state, now))
    step(1.0)
    assert skipping.count == 1
    assert not torch.equal(before[0], next(model.parameters()))
    for _ in range(LONGEST - 1):
        step(float("inf"))
    with pytest.raises(FloatingPointError, match=f"{LONGEST} steps in a row"):
        step(float("inf"))


def test_a_run_counts_what_it_skipped(tmp_path):
    model = tiny_llama()
    calls = []

    def poison(gradient):
        calls.append(1)
        return gradient * float("nan") if len(calls) == 3 else gradient

    model.lm_head.weight.register_hook(poison)
    examples, tuning = split_examples(rows(), 0.25)
    made = train(model, examples, tuning, tmp_path, steps=6, batch_size=4, learning_rate=1e-2)
    assert made.skipped == 1
    assert made.after < made.before


def test_masked_rows_resume_to_the_same_weights(tmp_path, monkeypatch):
    from transformers import BertConfig, BertForMaskedLM

    def go(folder, resume=False):
        torch.manual_seed(0)
        model = BertForMaskedLM(
            BertConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                       num_attention_heads=2, max_position_embeddings=16)
        )  # fmt: skip
        parts = [Masked(part, Bracketed(), seed=5) for part in split_examples(rows(24), 0.25)]
        train(model, *parts, folder, steps=12, batch_size=4, learning_rate=1e-2, evaluate_every=3,
              accumulate=2, resume=resume)  # fmt: skip
        return model, parts[0].epoch

    whole, epochs = go(tmp_path / "whole")
    assert epochs == 3  # 18 rows are 5 batches, 3 steps an epoch
    monkeypatch.setattr("corank.training.run._teller", _stop_after(8))
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut")
    monkeypatch.undo()
    again, _ = go(tmp_path / "cut", resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
