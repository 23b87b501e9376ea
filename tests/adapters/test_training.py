"""Adapters in transformers' Trainer, killed and resumed; autocast, checkpointing, torch.compile."""

import copy
import os
import signal
import subprocess
import sys

import pytest
import torch

import corank
from corank.adapters import adapted, disabled
from corank.errors import SiteError
from tests.verbs.models import tiny_llama, tokens

from .small import stir

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
METHODS = ["lora", "dora", "pissa"]


def adapted_llama(method="lora"):
    model = tiny_llama(attention_dropout=0.1)
    corank.adapt(model, method, rank=4, targets=["q_proj", "v_proj", "down_proj"])
    return model


def trainer(model, folder, steps=6, **options):
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": r, "labels": r} for b in tokens(8) for r in b["input_ids"]]
    arguments = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=4, save_steps=2,
        learning_rate=1e-2, report_to=[], use_cpu=True, disable_tqdm=True, **options,
    )  # fmt: skip
    callbacks = [corank.controller(model).callback()]
    return Trainer(model, arguments, train_dataset=rows, callbacks=callbacks)


def require_equal(one, two):
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_the_trainer_trains_only_the_adapter_and_resumes_exactly(tmp_path, method):
    model = adapted_llama(method)
    before = {n: p.clone() for n, p in model.named_parameters()}
    trainer(model, tmp_path).train()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad}
    again = adapted_llama(method)
    trainer(again, tmp_path / "b").train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    require_equal(model, again)


def int8_llama():
    quantization = pytest.importorskip("torchao.quantization")
    model = tiny_llama()
    quantization.quantize_(model.model, quantization.Int8WeightOnlyConfig())
    corank.adapt(model, "lora", rank=4, targets=["q_proj", "down_proj"])
    return model


def test_checkpoints_hold_what_is_not_torchaos_and_resume_exactly(tmp_path):
    from safetensors.torch import load_file

    model = int8_llama()
    names = set(model.state_dict())
    trainer(model, tmp_path).train()
    held = set(load_file(tmp_path / "checkpoint-4" / "model.safetensors"))
    assert {n for n, p in model.named_parameters() if p.requires_grad} < held
    assert "model.layers.0.self_attn.v_proj.weight" not in held
    assert set(model.state_dict()) == names
    again = int8_llama()
    trainer(again, tmp_path / "b").train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    trained = {n: p for n, p in again.named_parameters() if p.requires_grad}
    torch.testing.assert_close(
        trained, {n: p for n, p in model.named_parameters() if n in trained}, rtol=0, atol=0
    )


KILLED = """
import sys, time, torch, corank
from transformers import TrainerCallback
from tests.adapters.test_training import adapted_llama, trainer
class Slow(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        print(state.global_step, flush=True)
        time.sleep(0.2)
made = trainer(adapted_llama(), sys.argv[1])
made.add_callback(Slow())
made.train()
"""


def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    model = adapted_llama()
    trainer(model, tmp_path / "whole").train()
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "cut")], stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.strip() == "3":
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    again = adapted_llama()
    trainer(again, tmp_path / "cut").train(resume_from_checkpoint=True)
    require_equal(model, again)


def train(model, steps=4):
    control = corank.controller(model, total_steps=8)
    optimizer = torch.optim.Adam(control.parameter_groups(1e-2))
    control.attach(optimizer)
    losses = []
    for _ in range(steps):
        ids = tokens(1)[0]["input_ids"]
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("method", METHODS)
def test_checkpointing_gives_the_same_gradients(method):
    plain = adapted_llama(method)
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable()
    checkpointed.enable_input_require_grads()
    torch.testing.assert_close(train(plain), train(checkpointed))


@pytest.mark.parametrize("method", METHODS)
def test_autocast_trains_wide_leaves(method):
    model = adapted_llama(method)
    with torch.autocast("cpu", torch.bfloat16):
        losses = train(model)
    assert losses[-1] < losses[0]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in trained)


@pytest.mark.parametrize("method", METHODS)
def test_a_half_precision_model_trains(method):
    model = tiny_llama().bfloat16()
    corank.adapt(model, method, rank=4)
    losses = train(model)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", METHODS)
def test_the_forward_compiles_without_a_graph_break(method):
    torch._dynamo.reset()
    layer = adapted_llama(method).model.layers[0].self_attn.q_proj
    x = torch.randn(3, 32)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))


def test_a_gradient_that_is_not_finite_moves_nothing():
    model = adapted_llama()
    control = corank.controller(model)
    optimizer = torch.optim.Adam(control.parameter_groups(1e-2))
    control.attach(optimizer)
    before = copy.deepcopy(model.state_dict())
    ids = tokens(1)[0]["input_ids"]
    (model(input_ids=ids, labels=ids).loss * float("nan")).backward()
    with pytest.raises(SiteError, match=r"layers\.0.*NaN or infinite at step 0.*learning rate"):
        optimizer.step()
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_a_state_of_other_adapters_is_refused():
    model, other = adapted_llama(), tiny_llama()
    corank.adapt(other, "lora", name="another")
    with pytest.raises(ValueError, match=r"of \['another'\], not \['default'\]"):
        corank.controller(model).load_state_dict(corank.controller(other).state_dict())


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lora", {"rank": 2}, "with other settings: rank was 4 and is 2"),
        ("dora", {"rank": 4}, "method was 'lora' and is 'dora'"),
        ("lora", {"rank": 4, "alpha": 3.0}, "alpha was None and is 3.0"),
        ("lora", {"rank": 4, "targets": ["q_proj"]}, "sites was"),
    ],
)
def test_a_state_of_other_settings_is_refused(method, options, message):
    model, other = tiny_llama(), tiny_llama()
    corank.adapt(model, "lora", rank=4)
    corank.adapt(other, method, **options)
    with pytest.raises(ValueError, match=message):
        corank.controller(other).load_state_dict(corank.controller(model).state_dict())


def scheduled(total):
    model = tiny_llama()
    corank.adapt(model, "adalora", init_r=4, target_r=2, tinit=1, tfinal=1)
    control = corank.controller(model, total_steps=total)
    optimizer = torch.optim.Adam(control.parameter_groups(1e-2))
    control.attach(optimizer)
    return model, control, optimizer


def test_a_schedule_over_other_steps_is_refused():
    model, control, optimizer = scheduled(8)
    ids = tokens(1)[0]["input_ids"]
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    _, other, others = scheduled(9)
    with pytest.raises(ValueError, match="total_steps was 8 and is 9"):
        others.load_state_dict(optimizer.state_dict())
    assert other.trainings[0].step == 0
    with pytest.raises(ValueError, match="total_steps was 8 and is 10"):
        control.plan(10)
    assert control.trainings[0].total == 8
    _, same, sames = scheduled(8)
    sames.load_state_dict(optimizer.state_dict())
    assert same.trainings[0].step == 1


def test_a_method_without_a_schedule_goes_on_for_longer():
    model = adapted_llama()
    state = corank.controller(model, total_steps=8).state_dict()
    corank.controller(model, total_steps=9).load_state_dict(state)


@pytest.mark.parametrize("late", [False, True])
def test_accelerate_accumulates_and_counts_the_optimisers_steps(late):
    from accelerate import Accelerator

    model, plain = adapted_llama(), adapted_llama()
    control = corank.controller(model)
    optimizer = torch.optim.SGD(control.parameter_groups(0.1))
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    if not late:
        control.attach(optimizer)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    if late:
        control.attach(optimizer)
    for ids in (batch["input_ids"] for batch in tokens(4)):
        with accelerator.accumulate(wrapped):
            accelerator.backward(wrapped(input_ids=ids, labels=ids).loss)
            optimizer.step()
            optimizer.zero_grad()
    assert control.trainings[0].step == 2
    reference = torch.optim.SGD([p for p in plain.parameters() if p.requires_grad], 0.1)
    for number, ids in enumerate(batch["input_ids"] for batch in tokens(4)):
        (plain(input_ids=ids, labels=ids).loss / 2).backward()
        if number % 2:
            reference.step()
            reference.zero_grad()
    torch.testing.assert_close(dict(model.named_parameters()), dict(plain.named_parameters()))


def test_a_grad_scaler_skips_a_step_that_is_not_finite():
    model = adapted_llama()
    control = corank.controller(model)
    optimizer = torch.optim.Adam(control.parameter_groups(1e-2))
    control.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = copy.deepcopy(model.state_dict())
    ids = tokens(1)[0]["input_ids"]
    for factor, steps in ((float("inf"), 0), (1.0, 1)):
        optimizer.zero_grad()
        scaler.scale(factor * model(input_ids=ids, labels=ids).loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert control.trainings[0].step == steps
        same = all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
        assert same == (steps == 0)


def test_a_whole_model_compiles_to_one_graph_and_swaps_without_another(tmp_path):
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    model, other = adapted_llama(), adapted_llama()
    stir(other)
    corank.save_adapter(other, tmp_path / "a")
    counter = CompileCounter()
    compiled = torch.compile(model.model.eval(), fullgraph=True, backend=counter)
    ids = tokens(1)[0]["input_ids"]
    compiled(ids)
    corank.load_adapter(model, tmp_path / "a", swap=True)
    seen = compiled(ids).last_hidden_state
    torch.testing.assert_close(seen, other.model.eval()(ids).last_hidden_state)
    assert counter.frame_count == 1


def test_inputs_are_observed_once_under_checkpointing():
    seen = {}
    for kind in (None, False, True):
        model = tiny_llama()
        corank.adapt(model, "prilora", first=2, last=4, depth=2)
        if kind is not None:
            model.gradient_checkpointing_enable({"use_reentrant": kind})
            model.enable_input_require_grads()
        model.train()
        train(model, 2)
        seen[kind] = {n: b for n, b in model.named_buffers() if n.endswith("square_mean")}
    assert seen[None]
    torch.testing.assert_close(seen[False], seen[None])
    torch.testing.assert_close(seen[True], seen[None])


def test_wrapping_leaves_the_function_and_no_trace_when_deleted():
    model, bare = adapted_llama(), tiny_llama(attention_dropout=0.1)
    train(model)
    ids = tokens(1)[0]["input_ids"]
    model.eval()
    with disabled(model):
        assert torch.equal(model(ids).logits, bare(ids).logits)
    corank.adapters.delete(model, "default")
    assert not adapted(model)
    assert torch.equal(model(ids).logits, bare(ids).logits)
    assert list(model.state_dict()) == list(bare.state_dict())
