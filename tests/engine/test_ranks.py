"""Two gloo processes compress to what one gives, each having built half of the operators."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import corank
from corank.calibration.outputs import outputs
from tests.processes import in_two_processes
from tests.verbs.models import tiny_llama, tokens

CASES = {
    "svd_llm": {"keep": 0.5},
    "basis_sharing": {"keep": 0.5},
    "corank": {"keep": 0.5},
}


def compressed(key):
    model = tiny_llama()
    corank.compress(model, key, data=tokens(), **CASES[key])
    return model


def work(rank, folder):
    from corank.engine import rewriting

    real, counts = rewriting._build, []
    rewriting._build = lambda *args: counts.append(1) or real(*args)
    for key in CASES:
        model = compressed(key)
        state = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
        save_file(state, folder / f"{key}-{rank}.safetensors")
    (folder / f"shared-{rank}").write_text(str(_shared(compressed("basis_sharing"))))
    (folder / f"built-{rank}").write_text(str(len(counts)))
    if rank == 1:
        rewriting._build = _failing
    else:
        rewriting._build = real
    with pytest.raises(RuntimeError, match="no memory left"):
        compressed("svd_llm")


def _failing(*args):
    raise RuntimeError("no memory left")


def _shared(model):
    first, second = (layer.self_attn.q_proj.operator.a for layer in model.model.layers)
    return first is second


def test_two_processes_share_the_work_and_agree(tmp_path):
    in_two_processes(work, tmp_path)
    built = []
    for rank in range(2):
        assert (tmp_path / f"shared-{rank}").read_text() == "True"
        built.append(int((tmp_path / f"built-{rank}").read_text()))
    alone = {key: compressed(key) for key in CASES}
    assert sum(built) == 14 + 2 * 9 + 14  # sites; groups, twice; sites: each built on one rank
    assert min(built) > 10
    for key in CASES:
        for rank in range(2):
            model = tiny_llama()
            corank.compress(model, key, data=tokens(), **CASES[key])
            model.load_state_dict(load_file(tmp_path / f"{key}-{rank}.safetensors"))
            for now, then in zip(
                outputs(model, tokens(1)), outputs(alone[key], tokens(1)), strict=True
            ):
                torch.testing.assert_close(now, then, rtol=1e-3, atol=1e-3)
