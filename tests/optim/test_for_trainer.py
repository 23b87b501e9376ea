"""transformers' Trainer with corank's optimisers."""

import pytest
import torch

import corank
from tests.verbs.models import tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def trainer(folder, kind="galore", **options):
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        str(folder), max_steps=6, per_device_train_batch_size=2, learning_rate=0.01,
        weight_decay=0.2, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6, save_steps=3,
        report_to=[], disable_tqdm=True, use_cpu=True, seed=1,
    )  # fmt: skip
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.arange(96).view(8, 12) % 60]
    model = tiny_llama()
    pair = corank.optim.for_trainer(kind, model, arguments, rank=4, every=2, **options)
    return Trainer(model, arguments, train_dataset=rows, optimizer_cls_and_kwargs=pair)


def test_what_the_arguments_say_is_honoured_and_options_go_before_them(tmp_path):
    made = trainer(tmp_path).create_optimizer()
    assert isinstance(made, corank.optim.GaLore)
    names = {p: n for n, p in trainer(tmp_path).model.named_parameters()}
    assert sum(len(g["params"]) for g in made.param_groups) == len(names)
    for group in made.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.01, (0.8, 0.95), 1e-6)
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] == 0.2}
        assert group["rank"] == 4
    made = trainer(tmp_path, corank.optim.Fira, eps=1e-3, weight_decay=0.1).create_optimizer()
    assert isinstance(made, corank.optim.Fira)
    assert made.param_groups[0]["eps"] == 1e-3
    assert made.param_groups[0]["weight_decay"] == 0.1


def test_an_interrupted_run_goes_on_exactly(tmp_path):
    whole = trainer(tmp_path / "whole")
    whole.train()
    again = trainer(tmp_path / "again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert isinstance(again.optimizer.optimizer, corank.optim.GaLore)
    for p, q in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_bad_kinds_and_options_are_named(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'galore'"):
        trainer(tmp_path, "galor")
    with pytest.raises(ValueError, match="option of GaLore"):
        trainer(tmp_path, "galore", ranks=3)
