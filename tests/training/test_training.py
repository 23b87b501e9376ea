"""Rows from text and JSONL, and a run that stops, resumes and is refused where it should be."""

import json

import pytest
import torch

import corank
from corank.errors import DataError, FormatError
from corank.training import read_examples, split_examples, train
from corank.training.examples import Examples
from corank.training.run import collate
from tests.verbs.models import tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class Letters:
    """A tokenizer of one token a byte, with 63 for the end of a text."""

    eos_token_id = 63

    def __call__(self, text, **_):
        return {"input_ids": [b % 60 for b in text.encode()]}


def test_text_is_joined_cut_and_ended(tmp_path):
    (tmp_path / "a.txt").write_text("abcde")
    (tmp_path / "b.txt").write_text("fg")
    examples = read_examples(tmp_path, Letters(), 4)
    ids = [b % 60 for b in b"abcde"] + [63] + [b % 60 for b in b"fg"] + [63]
    assert [row["input_ids"] for row in examples.rows] == [ids[:4], ids[4:8]]
    assert all(row["labels"] == row["input_ids"] for row in examples.rows)


def test_only_completions_are_learnt(tmp_path):
    lines = [{"prompt": "ab", "completion": "c"}, {"text": "xyz"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    first, second = read_examples(tmp_path / "rows.jsonl", Letters()).rows
    assert first == {"input_ids": [37, 38, 39, 63], "labels": [-100, -100, 39, 63]}
    assert second["labels"] == second["input_ids"]
    batch = collate([first, {"input_ids": [1, 2], "labels": [1, 2]}])
    assert batch["labels"].tolist() == [[-100, -100, 39, 63], [1, 2, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no lines"),
        ("{", r"rows\.jsonl:1 is not JSON"),
        ('{"txt": "a"}', r"neither \"text\" nor .*\['txt'\]"),
        ('{"text": 3}', "a text must be a string, got int"),
        ('{"prompt": "abcdefgh", "completion": "i"}', "nothing to learn within 4 tokens"),
    ],
)
def test_bad_lines_are_named(tmp_path, text, message):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        read_examples(tmp_path / "rows.jsonl", Letters(), 4)


def rows(count=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(0, 8, (12,), generator=g).tolist() for _ in range(count)]
    return Examples([{"input_ids": row, "labels": row} for row in drawn])


def adapted():
    model = tiny_llama()
    corank.adapt(model, "lora", rank=4)
    return model


def run(folder, model=None, **options):
    model = adapted() if model is None else model
    examples, tuning = split_examples(rows(), 0.25)
    options = {"steps": 8, "batch_size": 4, "learning_rate": 1e-2, "evaluate_every": 2} | options
    made = train(model, examples, tuning, folder, controller=corank.controller(model), **options)
    return model, made


def test_it_learns_and_splits_apart(tmp_path):
    examples, tuning = split_examples(rows(), 0.25)
    assert len(examples) == 30
    assert len(tuning) == 10
    _, made = run(tmp_path)
    assert made.after < made.before
    assert made.steps == 8
    assert [step for step, _ in made.tuning][:5] == [0, 2, 4, 6, 8]


def test_a_run_cut_short_resumes_to_the_same_weights(tmp_path, monkeypatch):
    whole, _ = run(tmp_path / "whole", settings={"lr": 1})
    monkeypatch.setattr("corank.training.run._teller", _stop_after(5))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", settings={"lr": 1})
    monkeypatch.undo()
    with pytest.raises(FormatError, match="other settings: lr was 1 and is 2"):
        run(tmp_path / "cut", resume=True, settings={"lr": 2})
    again, _ = run(tmp_path / "cut", resume=True, settings={"lr": 1})
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_checkpoint_that_a_kill_left_half_written_is_passed_over(tmp_path, monkeypatch):
    whole, _ = run(tmp_path / "whole")
    monkeypatch.setattr("corank.training.run._teller", _stop_after(5))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut")
    monkeypatch.undo()
    (tmp_path / "cut" / "checkpoint-4" / "trainer_state.json").unlink()
    (tmp_path / "cut" / "checkpoint-4" / "optimizer.pt").write_bytes(b"PK")
    again, _ = run(tmp_path / "cut", resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def _stop_after(steps):
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == steps:
                raise KeyboardInterrupt

    return lambda progress: Stop()


def test_patience_stops_it_and_goes_back_to_the_best(tmp_path):
    _, made = run(tmp_path, steps=60, learning_rate=1.0, patience=1)
    assert made.stopped_early
    assert made.after == min(loss for _, loss in made.tuning)


def test_nothing_to_train_or_resume_is_refused(tmp_path):
    with pytest.raises(DataError, match="nothing in the model trains"):
        run(tmp_path, tiny_llama().requires_grad_(False))
    with pytest.raises(FormatError, match="no checkpoint to resume from"):
        run(tmp_path / "new", resume=True)
    with pytest.raises(DataError, match="too few to hold 10% of them out"):
        split_examples(rows(3), 0.1)


def test_losses_are_logged_to_tensorboard(tmp_path):
    _, made = run(tmp_path, tensorboard=True)
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    logged = {"train/loss": [], "eval/loss": []}
    for file in sorted((tmp_path / "tensorboard").glob("events.*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.tag in logged:
                    logged[value.tag].append((event.step, value.tensor.float_val[0]))
    assert [step for step, _ in logged["train/loss"]] == list(range(1, 9))
    steps, losses = zip(*sorted(set(logged["eval/loss"])), strict=True)
    assert steps == tuple(step for step, _ in made.tuning)
    assert losses == pytest.approx([loss for _, loss in made.tuning])


def test_a_run_in_bf16_computes_in_it(tmp_path):
    model, seen = adapted(), set()
    model.lm_head.register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    _, made = run(tmp_path, model, precision="bf16")
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert made.after < made.before - 0.1


@pytest.mark.parametrize(
    ("precision", "message"),
    [("fp16", "fp16 takes a GPU: train in bf16"), ("fp32", "none of bf16")],
)
def test_a_precision_that_would_be_ignored_is_refused(tmp_path, precision, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, precision=precision)
    assert not list(tmp_path.iterdir())
