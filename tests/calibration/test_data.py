from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from corank.calibration import batches
from corank.errors import DataError


@pytest.fixture(scope="module")
def bare():
    """A word-level tokenizer without special tokens around a text, and no padding token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"<unk>": 0, "<eos>": 1, "a": 2} | {f"w{i}": i + 3 for i in range(40)}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<eos>", unk_token="<unk>",
    )  # fmt: skip


@pytest.fixture(scope="module")
def wrapping():
    """One that wraps every text in [CLS] and [SEP]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "a": 4}
    vocab |= {f"w{i}": i + 5 for i in range(40)}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        unk_token="[UNK]",
    )  # fmt: skip


def words(*numbers: int) -> str:
    return " ".join(f"w{i}" for i in numbers)


def test_a_file_is_packed_and_its_incomplete_end_kept(bare, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(words(*range(14)))
    made = batches(file, tokenizer=bare, sequence_length=4, batch_size=2)
    assert [b["input_ids"].shape for b in made] == [(2, 4), (1, 4), (1, 2)]
    joined = torch.cat([b["input_ids"].flatten() for b in made])
    assert joined.tolist() == [i + 3 for i in range(14)]
    assert made.notes == ["the last sequence has 2 of 4 tokens"]
    assert made.samples == 4
    file.write_text(words(*range(13)))
    made = batches(file, tokenizer=bare, sequence_length=4)
    assert [b["input_ids"].shape for b in made] == [(3, 4), (1, 1)]


def test_a_folder_is_read_in_order_with_separators(bare, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text(words(0, 1))
    (tmp_path / "sub" / "b.py").write_text(words(2))
    (tmp_path / "x.bin").write_bytes(b"\xff\xfe\x00")
    (tmp_path / ".hidden").write_text(words(9))
    made = batches(str(tmp_path), tokenizer=bare, sequence_length=4)
    assert made[0]["input_ids"].tolist() == [[3, 4, 1, 5]]
    assert made.notes[0] == "x.bin was skipped: not UTF-8 text"


def test_packs_carry_the_special_tokens(wrapping, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(words(*range(6)))
    made = batches(tmp_path / "t.txt", tokenizer=wrapping, sequence_length=5)
    assert made[0]["input_ids"].tolist() == [[1, 5, 6, 7, 2], [1, 8, 9, 10, 2]]
    assert len(made) == 1


def test_count_is_explicit(bare, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(words(*range(12)))
    made = batches(tmp_path / "t.txt", tokenizer=bare, sequence_length=4, count=2)
    assert made.samples == 2
    assert made.notes == ["only the first 2 sequences were used, as asked"]
    assert not batches(tmp_path / "t.txt", tokenizer=bare, sequence_length=4, count=3).notes


def test_a_list_of_texts_is_padded(wrapping) -> None:
    texts = [words(0), words(1, 2, 3, 4, 5, 6), "", words(7, 8)]
    made = batches(texts, tokenizer=wrapping, sequence_length=6, batch_size=2)
    assert made[0]["input_ids"].tolist() == [[1, 5, 2, 0, 0, 0], [1, 6, 7, 8, 9, 2]]
    assert made[0]["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]
    assert made[1]["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert made.notes == ["1 of 4 texts were cut to 6 tokens"]


def test_texts_of_like_length_share_a_batch(wrapping) -> None:
    texts = [words(1, 2, 3, 4), words(5), words(6, 7, 8), words(9)]
    made = batches(texts, tokenizer=wrapping, sequence_length=8, batch_size=2, by_length=True)
    assert [tuple(batch["input_ids"].shape) for batch in made] == [(2, 3), (2, 6)]
    assert [int(batch["attention_mask"].sum()) for batch in made] == [6, 11]
    assert made[0]["input_ids"].tolist() == [[1, 10, 2], [1, 14, 2]]


def test_texts_can_be_packed_and_empty_ones_are_reported(bare) -> None:
    made = batches([words(0, 1), words(2)], tokenizer=bare, sequence_length=4, pack=True)
    assert made[0]["input_ids"].tolist() == [[3, 4, 1, 5]]
    assert batches(["", words(1)], tokenizer=bare).notes[0] == "1 empty texts were left out"


def test_model_inputs_pass_through_and_count_cuts_them() -> None:
    data = [{"x": torch.arange(6).reshape(3, 2)}, {"x": torch.zeros(3, 2)}]
    made = batches(iter(data), count=4)
    assert [len(b["x"]) for b in made] == [3, 1]
    assert made.notes == ["only the first 4 samples were used, as asked"]
    assert batches(lambda: data).samples == 6
    assert batches(torch.zeros(5, 2)).samples == 5
    loader = DataLoader(TensorDataset(torch.zeros(5, 2), torch.zeros(5)), batch_size=2)
    assert [len(b[0]) for b in batches(loader)] == [2, 2, 1]


def test_data_sets_with_text_or_tokens(bare, wrapping) -> None:
    datasets = pytest.importorskip("datasets")
    texts = datasets.Dataset.from_dict({"label": [0, 1], "text": [words(0), words(1, 2)]})
    made = batches(texts, tokenizer=wrapping)
    assert made[0]["input_ids"].tolist() == [[1, 5, 2, 0], [1, 6, 7, 2]]
    assert "text read from the column 'text'" in made.notes
    rows = {"input_ids": [[1, 2, 3], [4, 5]], "name": ["x", "y"]}
    ready = batches(datasets.Dataset.from_dict(rows), sequence_length=8)
    assert ready[0]["input_ids"].tolist() == [[1, 2, 3], [4, 5, 0]]
    assert ready[0]["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert "columns left out: name" in ready.notes
    with pytest.raises(DataError, match="empty"):
        batches(datasets.Dataset.from_dict({"text": []}), tokenizer=bare)


def test_what_cannot_be_used_is_refused(bare, wrapping, tmp_path: Path) -> None:
    for empty in ([], {}, lambda: iter(()), [torch.zeros(0, 3)]):
        with pytest.raises(DataError, match=r"empty|no samples|mapping"):
            batches(empty)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="empty"):
        batches(tmp_path / "empty.txt", tokenizer=bare)
    with pytest.raises(DataError, match="give tokenizer="):
        batches(["text"])
    with pytest.raises(DataError, match="neither a file nor a folder"):
        batches(tmp_path / "missing.txt", tokenizer=bare)
    with pytest.raises(DataError, match="must be a mapping, a tuple or a tensor"):
        batches([object()])
    with pytest.raises(DataError, match="count must be at least 1"):
        batches(["text"], tokenizer=bare, count=0)
    with pytest.raises(DataError, match="no room for text"):
        batches(["text"], tokenizer=wrapping, sequence_length=2, pack=True)


def test_a_single_sample_is_warned_of() -> None:
    assert "single sample" in batches([torch.zeros(1, 3)]).notes[0]
    assert not batches([torch.zeros(2, 3)]).notes
