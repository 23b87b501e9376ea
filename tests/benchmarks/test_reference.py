"""The reference model's splits, its committed weights, and how it is measured and trained."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.reference import corpus
from benchmarks.reference.evaluate import (
    MODEL_FOLDER,
    encode,
    load_model,
    load_tokenizer,
    perplexity,
)
from benchmarks.reference.network import SEQUENCE_LENGTH, VOCABULARY
from benchmarks.reference.ngram import Trigram
from benchmarks.reference.schedule import DECAY, FLOOR, WARMUP, learning_rate_factor

SLICE_TOKENS = 8 * SEQUENCE_LENGTH


class NextTokenTable(nn.Module):
    """A model whose logits are a row of a table per input token."""

    def __init__(self, words: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(words, words, generator=generator))

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


def test_splits_are_disjoint_by_file() -> None:
    training, tuning, heldout = (
        set(corpus.split_files(split)) for split in ("training", "tuning", "heldout")
    )
    assert training
    assert tuning
    assert heldout
    assert not training & tuning
    assert not training & heldout
    assert not tuning & heldout
    calibration = corpus.split_files("calibration")
    assert set(calibration) < training
    assert calibration == sorted(calibration)
    prose = corpus.standard_library() / "pydoc_data" / "topics.py"
    assert prose not in training | tuning | heldout


def test_splits_follow_package_names() -> None:
    root = corpus.standard_library()
    names = {path.relative_to(root).parts[0] for path in corpus.split_files("heldout")}
    assert names == set(corpus.HELD_OUT_UNITS)
    training = corpus.split_files("training")
    assert root / "argparse.py" in training
    assert root / "importlib" / "__init__.py" in training
    assert not any("site-packages" in path.parts for path in training)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="training, calibration, tuning, heldout"):
        corpus.split_files("validation")


def test_prose_is_sentences_not_source() -> None:
    text = corpus.prose_text()
    assert len(text) > 100_000
    assert ">>>" not in text
    assert "::=" not in text
    assert "def " not in text.split(corpus.END_OF_TEXT)[0]


def test_committed_model_is_a_small_tied_gqa_llama() -> None:
    model = load_model()
    config = model.config
    assert config.model_type == "llama"
    assert 1 < config.num_key_value_heads < config.num_attention_heads
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    parameters = sum(p.numel() for p in model.parameters())
    assert 5e6 <= parameters <= 8e6
    assert sum(path.stat().st_size for path in MODEL_FOLDER.iterdir()) < 16e6
    assert config.vocab_size == VOCABULARY == len(load_tokenizer())


def test_tokenizer_reads_the_separator_and_keeps_the_text() -> None:
    tokenizer = load_tokenizer()
    text = "def f(x):\n    return 'é', x  # ok\n"
    ids = encode(tokenizer, text + corpus.END_OF_TEXT + text)
    assert (ids == tokenizer.eos_token_id).sum() == 1
    assert tokenizer.decode(ids) == text + corpus.END_OF_TEXT + text
    whole = tokenizer(text + corpus.END_OF_TEXT + text, add_special_tokens=False)
    assert ids.tolist() == whole["input_ids"]


def test_committed_model_beats_a_trigram_in_both_domains() -> None:
    tokenizer, model = load_tokenizer(), load_model()
    trigram = Trigram(encode(tokenizer, corpus.training_text()).numpy(), VOCABULARY)
    domains = ((corpus.heldout_text(), 0.5), (corpus.prose_text(), 1.0))
    for text, bound in domains:
        ids = encode(tokenizer, text[: 8 * SLICE_TOKENS])[:SLICE_TOKENS]
        assert len(ids) == SLICE_TOKENS
        found = perplexity(model, ids, SEQUENCE_LENGTH)
        assert found < bound * trigram.perplexity(ids.numpy(), SEQUENCE_LENGTH)


def test_perplexity_equals_the_mean_over_predicted_tokens() -> None:
    model = NextTokenTable(7)
    ids = torch.randint(7, (5 * 40 + 3,), generator=torch.Generator().manual_seed(1))
    losses = [
        -F.log_softmax(model.table[ids[i - 1]], dim=0)[ids[i]].item()
        for i in range(200)
        if i % 5 != 0
    ]
    expected = math.exp(sum(losses) / len(losses))
    assert perplexity(model, ids, 5) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("ids", "length"),
    [(torch.zeros(3, dtype=torch.long), 4), (torch.zeros(8, dtype=torch.long), 1)],
)
def test_perplexity_refuses_too_few_tokens(ids: Tensor, length: int) -> None:
    with pytest.raises(ValueError, match="sequence_length"):
        perplexity(NextTokenTable(2), ids, length)


def test_learning_rate_warms_up_holds_and_decays() -> None:
    assert learning_rate_factor(0.0) == FLOOR
    assert learning_rate_factor(WARMUP) == 1.0
    assert learning_rate_factor(1 - DECAY) == 1.0
    assert learning_rate_factor(1 - DECAY / 2) == pytest.approx((1 + FLOOR) / 2)
    assert learning_rate_factor(1.5) == FLOOR


def test_batches_are_contiguous_and_cover_the_stream() -> None:
    train = pytest.importorskip("benchmarks.reference.train")
    stream = torch.arange(20 * SEQUENCE_LENGTH)
    batches = islice(train.stream_batches(stream, torch.Generator().manual_seed(0)), 3)
    windows = torch.cat(list(batches))[:19]  # an epoch: 20 windows less the one cut by the offset
    assert (windows.diff(dim=1) == 1).all()
    assert len(windows[:, 0].unique()) == 19


def test_a_resumed_run_continues_exactly(tmp_path: Path) -> None:
    train = pytest.importorskip("benchmarks.reference.train")
    torch.manual_seed(0)
    windows = torch.randint(VOCABULARY, (3, 1, 17))
    first = train.Run(tmp_path)
    first.step(windows[0], progress=0.5)
    first.save()
    second = train.Run(tmp_path)
    assert second.steps == 1
    for run in (first, second):
        run.step(windows[1], progress=0.5)
    for name, tensor in first.average.items():
        assert torch.equal(tensor, second.average[name])
    for ours, theirs in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "training_state.safetensors",
    }
