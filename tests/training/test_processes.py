"""Runs that are killed, ten times, and runs over two processes: by the command line."""

import json
import random
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from .killed import kill, start

pytestmark = pytest.mark.slow

CONFIG = {
    "model_type": "llama", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32,
    "attention_dropout": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "texts").mkdir()
    for i in range(10):
        lines = [f"def add_{i}_{j}(a, b):\n    return a + b + {j}\n" for j in range(40)]
        (folder / "texts" / f"{i}.txt").write_text("\n".join(lines))
    return folder


def command(sources, out, *more):
    return [str(part) for part in (
        "train", sources / "config.json", "--data", sources / "texts", "--out", out, "--json",
        "--sequence-length", 16, "--batch-size", 4, "--lr", "1e-2", "--cpu", *more,
    )]  # fmt: skip


def whole(sources, out, *more):
    process = start(command(sources, out, *more))
    process.join()
    assert process.exitcode == 0
    return trained(out)


def trained(out):
    (file,) = [*out.glob("model/model.safetensors"), *out.glob("adapter/*.safetensors")]
    return load_file(file)


def require_equal(one, two):
    assert set(one) == set(two)
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


@pytest.mark.parametrize("optimizer", ["adamw", "galore"])
def test_ten_kills_leave_the_weights_of_an_undisturbed_run(sources, tmp_path, optimizer):
    more = ["--steps", 400, "--evaluate-every", 5, "--optimizer", optimizer]
    if optimizer == "galore":
        more += ["--set", "optimizer.rank=4", "optimizer.every=7"]
    expected = whole(sources, tmp_path / "whole", *more)
    out = tmp_path / "cut"
    drawn, kills, reached = random.Random(0), 0, -1
    checkpoints = out / "checkpoints"
    while kills < 10:
        begun = any(checkpoints.glob("checkpoint-*/trainer_state.json"))
        process = start(command(sources, out, *more, "--resume" if begun else "--force"))
        while process.is_alive() and _last(checkpoints) <= reached:
            time.sleep(0.01)  # until it has got further than the run before
        time.sleep(drawn.uniform(0.0, 0.3))
        assert kill(process), process.exitcode
        kills, reached = kills + 1, _last(checkpoints)
    assert reached < 400
    require_equal(expected, whole(sources, out, *more, "--resume"))


def _last(checkpoints):
    found = [int(p.name.rpartition("-")[2]) for p in checkpoints.glob("checkpoint-*")]
    return max(found, default=-1)


def over_two(sources, out, *more):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    arguments = command(sources, out, "--steps", 8, "--evaluate-every", 2, *more)
    made = subprocess.run(
        [*torchrun, "-m", "corank", *arguments],
        capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert made.stdout.count('"verb"') == 1
    return trained(out)


WAYS = {
    "ddp": [],
    "fsdp": ["--fsdp"],
    "fsdp, adapter": ["--fsdp", "--adapt", "pissa", "--rank", 4],
    "fsdp, factorised": ["--fsdp", "--factorize", "sltrain", "--rank", 4],
}


@pytest.mark.parametrize("more", WAYS.values(), ids=WAYS)
def test_two_processes_train_as_one_with_twice_the_batch(sources, tmp_path, more):
    config = json.loads((sources / "config.json").read_text()) | {"attention_dropout": 0.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "texts").symlink_to(sources / "texts")
    made = over_two(tmp_path, tmp_path / "two", *more)
    alone = [flag for flag in more if flag != "--fsdp"]
    steps = ["--steps", 8, "--evaluate-every", 2, "--batch-size", 8]
    one = whole(tmp_path, tmp_path / "one", *steps, *alone)
    for name, value in one.items():
        torch.testing.assert_close(made[name], value, atol=2e-4, rtol=2e-3)
    kept = tmp_path / "two" / "checkpoints"
    assert len(list((kept / "checkpoint-8").glob("rng_state_*.pth"))) == 2
    assert (kept / "checkpoint-8" / "pytorch_model_fsdp.bin").is_file() == ("--fsdp" in more)
    for file in (kept / "checkpoint-8").iterdir():
        file.unlink()
    require_equal(made, over_two(tmp_path, tmp_path / "two", *more, "--resume"))
