"""Statistics kept in a file between calls of `compress`."""

import copy

import pytest
import torch

import corank
from corank.errors import FormatError

from .models import tiny_bert, tokens


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_second_call_reads_what_the_first_one_wrote(tmp_path):
    file, model = tmp_path / "statistics.safetensors", tiny_bert()
    plain, first, second = (copy.deepcopy(model) for _ in range(3))
    corank.compress(plain, "kfac_svd", keep=0.5, data=tokens())
    corank.compress(first, "kfac_svd", keep=0.5, data=tokens(), statistics=file)
    corank.compress(second, "kfac_svd", keep=0.5, statistics=file)  # no data: it must be the file
    torch.testing.assert_close(weights(first), weights(plain))
    torch.testing.assert_close(weights(second), weights(plain))


def test_a_file_without_what_the_method_needs_is_refused(tmp_path):
    file, model = tmp_path / "statistics.safetensors", tiny_bert()
    corank.compress(copy.deepcopy(model), "svd_llm", keep=0.5, data=tokens(), statistics=file)
    before = weights(model)
    with pytest.raises(FormatError, match=r"lack 'output_gram' of .*query"):
        corank.compress(model, "kfac_svd", keep=0.5, data=tokens(), statistics=file)
    assert torch.equal(weights(model), before)


def test_a_file_of_another_model_is_refused(tmp_path):
    file = tmp_path / "statistics.safetensors"
    corank.compress(tiny_bert(), "svd_llm", keep=0.5, data=tokens(), statistics=file)
    with pytest.raises(FormatError, match="another model"):
        corank.compress(tiny_bert(seed=1), "svd_llm", keep=0.5, statistics=file)
