from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> dict[str, Path]:
    """Three text files: name -> path."""
    folder = tmp_path_factory.mktemp("texts")
    generator = torch.Generator().manual_seed(0)
    paths = {}
    for name in ("calibration", "near", "far"):
        words = torch.randint(0, 30, (600,), generator=generator).tolist()
        paths[name] = folder / f"{name}.txt"
        paths[name].write_text(" ".join(f"w{word}" for word in words))
    return paths


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"w{i}": i for i in range(30)} | {"[PAD]": 30, "[UNK]": 31, "[EOS]": 32}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]"
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    """The folder of a tiny random LLaMA in bfloat16, with a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "llama"
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            dtype="bfloat16",
        )
    ).to(torch.bfloat16)  # fmt: skip
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def bert(tmp_path_factory) -> Path:
    """The folder of a tiny random BERT in float32, without a tokenizer."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("models") / "bert"
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=64,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder
