"""Texts become tokens once, and batches of them."""

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from forge.config.schema import Model
from forge.errors import UserError
from forge.inputs.text import Collator, Text, vocabulary


@pytest.fixture
def tokenizer():
    model = Model(config={"model_type": "bert", "vocab_size": 60, "max_position_embeddings": 16})
    return vocabulary(model, ["the cat sat on a mat", "a dog ran"] * 3)


def rows(*texts):
    columns = {"id": list(range(len(texts))), "text_0": list(texts), "labels": [0] * len(texts)}
    return Dataset.from_dict(columns)


def test_tokenising_counts_what_was_cut_and_is_done_once(tmp_path, tokenizer):
    def encode(*texts):
        return Text(6, ["text"]).encode(rows(*texts), tokenizer, 6, tmp_path)

    split = encode("the cat", "the cat sat on a mat")
    assert list(split["truncated"]) == [False, True]
    assert list(split["length"]) == [4, 6]
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "tokenised").iterdir()}
    again = encode("the cat", "the cat sat on a mat")
    assert again.to_dict() == split.to_dict()
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "tokenised").iterdir()} == written
    other = encode("the dog", "the cat sat on a mat")
    assert other["input_ids"] != split["input_ids"]


def test_texts_of_which_a_tokenizer_makes_nothing_are_refused(tmp_path, tokenizer):
    nothing = Tokenizer(models.BPE(vocab={"<pad>": 0, "x": 1}, merges=[]))
    other = PreTrainedTokenizerFast(tokenizer_object=nothing, pad_token="<pad>")
    with pytest.raises(UserError, match=r"gives the texts no token; name another"):
        Text(6, ["text"]).encode(rows("the cat", "a dog"), other, 6, tmp_path)
    few = Text(6, ["text"]).encode(rows("the cat", "x"), other, 6, tmp_path)
    assert list(few["input_ids"]) == [[0], [1]]
    assert Text(6, ["text"]).encode(rows("unheard-of"), tokenizer, 6, tmp_path)["length"][0] > 2


def test_batches_are_padded_to_the_longest_row_and_a_multiple_of_eight(tmp_path, tokenizer):
    split = Text(16, ["text"]).encode(rows("the cat", "a dog ran"), tokenizer, 16, tmp_path)
    assert Collator(tokenizer)(list(split))["input_ids"].shape == (2, 5)
    batch = Collator(tokenizer, 8)(list(split))
    assert batch["input_ids"].shape == (2, 8)
    assert batch["attention_mask"].sum(1).tolist() == list(split["length"])
    assert set(batch) <= {"input_ids", "attention_mask", "token_type_ids", "labels"}
