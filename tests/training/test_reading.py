"""Documents to rows: held out whole, cut in windows, hidden by seed and epoch."""

import json

import pytest

from corank.errors import DataError
from corank.training import Examples, Masked, read_examples, read_split, train_tokenizer
from corank.training.starting import objective_of, read_config, start_model

from .test_training import Letters


class Bracketed(Letters):
    """Puts 61 before a text and 62 behind it; 60 masks."""

    mask_token_id = 60
    all_special_ids = (60, 61, 62, 63)

    def __call__(self, text, add_special_tokens=True, **_):
        ids = super().__call__(text)["input_ids"]
        return {"input_ids": [61, *ids, 62] if add_special_tokens else ids}

    def __len__(self):
        return 64


def folder_of(tmp_path, texts):
    for i, text in enumerate(texts):
        (tmp_path / f"{i:02}.txt").write_text(text)
    return tmp_path


def words(examples):
    return [t for row in examples.rows for t in row["input_ids"]]


def test_documents_are_held_out_whole(tmp_path):
    texts = [chr(65 + i) * 8 for i in range(10)]
    told = []
    kept, held = read_split(
        folder_of(tmp_path, texts), Letters(), 4, 0.3, tell=lambda *a: told.append(a)
    )
    seen, tuned = (set(words(part)) - {63} for part in (kept, held))
    assert len(tuned) == 3
    assert not seen & tuned
    assert seen | tuned == {ord(text[0]) % 60 for text in texts}
    assert kept.notes == ("3 of 10 documents are held out to tune on",)
    assert told[-1] == ("tokenising", 1.0)


def test_special_tokens_stand_around_every_row(tmp_path):
    rows = read_examples(folder_of(tmp_path, ["abcdefg"]), Bracketed(), 5, specials=True).rows
    letters = [b % 60 for b in b"abcdefg"]
    assert [row["input_ids"] for row in rows] == [[61, *letters[:3], 62], [61, *letters[3:6], 62]]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([""], "holds no text to train on"),
        ([], "holds no text to train on"),
        (["ab"], "3 tokens, does not fill one sequence of 8"),
        (["ab", "abcdefghijklmn"], "does not fill one sequence of 8"),
    ],
)
def test_too_little_text_is_refused(tmp_path, texts, message):
    with pytest.raises(DataError, match=message):
        read_split(folder_of(tmp_path, texts), Letters(), 8)


def masked(seed=0, share=0.15):
    rows = [{"input_ids": [61, *range(2, 42), 62], "labels": []} for _ in range(50)]
    return Masked(Examples(rows), Bracketed(), seed, share)


def test_what_is_hidden_depends_on_seed_row_and_epoch_alone():
    one, two = masked(), masked()
    assert [one[i] for i in range(50)] == [two[i] for i in reversed(range(50))][::-1]
    two.epoch = 1
    assert one[0] != two[0] != masked(1)[0]


def test_a_share_is_hidden_as_berts_is():
    found = masked(share=0.3)
    hidden = replaced = kept = 0
    for i in range(50):
        row = found[i]
        for place, (seen, label) in enumerate(zip(row["input_ids"], row["labels"], strict=True)):
            true = [61, *range(2, 42), 62][place]
            assert label in (-100, true)
            if label == -100:
                assert seen == true
                continue
            assert true < 60
            hidden += seen == 60
            kept += seen == true
            replaced += seen not in (60, true)
    whole = hidden + replaced + kept
    assert 0.27 < whole / (50 * 40) < 0.33
    assert 0.75 < hidden / whole < 0.85
    assert 0.06 < replaced / whole < 0.14


def test_every_row_has_something_to_predict():
    found = masked(share=1e-9)
    assert all(any(label != -100 for label in found[i]["labels"]) for i in range(50))


def test_a_tokenizer_without_a_mask_is_refused():
    tokenizer = Letters()
    tokenizer.mask_token_id = None
    with pytest.raises(DataError, match="has no mask token"):
        Masked(Examples([]), tokenizer)


def test_a_tokenizer_is_trained_on_the_text_and_gives_it_back():
    text = "def f(x):\n    return f(x + 1)\n" * 20
    tokenizer = train_tokenizer([text], 300, masked=True)
    assert len(tokenizer) <= 300
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.eos_token_id, tokenizer.mask_token_id) == (0, 2)
    assert len({tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id}) == 3
    with pytest.raises(ValueError, match="no room for the 256 bytes"):
        train_tokenizer([text], 200)


def config(tmp_path, **entries):
    (tmp_path / "config.json").write_text(json.dumps(entries))
    return read_config(tmp_path)


@pytest.mark.parametrize(
    ("entries", "objective"),
    [
        ({"model_type": "llama"}, "causal"),
        ({"model_type": "llama", "architectures": ["LLaMAForCausalLM"]}, "causal"),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "causal"),
        ({"model_type": "bert"}, "masked"),
        ({"model_type": "bert", "architectures": ["BertForPreTraining"]}, "masked"),
        ({"model_type": "bert", "is_decoder": True}, "causal"),
    ],
)
def test_what_a_configuration_predicts(tmp_path, entries, objective):
    assert objective_of(config(tmp_path, **entries)) == objective


@pytest.mark.parametrize(
    "entries",
    [
        {"model_type": "vit"},
        {"model_type": "t5"},
        {"model_type": "bert", "architectures": ["BertForSequenceClassification"]},
    ],
)
def test_what_is_no_language_model_is_refused(tmp_path, entries):
    with pytest.raises(ValueError, match="no causal or masked language model"):
        objective_of(config(tmp_path, **entries))


def test_a_start_depends_on_its_seed_alone(tmp_path):
    import torch

    found = config(
        tmp_path, model_type="llama", vocab_size=40, hidden_size=16, intermediate_size=32,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    first = start_model(found, "causal", 3).lm_head.weight
    torch.rand(7)
    assert torch.equal(first, start_model(found, "causal", 3).lm_head.weight)
    assert not torch.equal(first, start_model(found, "causal", 4).lm_head.weight)
