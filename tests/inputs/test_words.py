"""Rows of words: their first pieces, in windows where they are long."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from forge.errors import UserError
from forge.inputs.words import Windows, Words
from forge.models import vocabularies

WORDS = [
    "ada",
    "lives",
    "in",
    "the",
    "old",
    "town",
    "of",
    "stonebridge",
    "near",
    "birchwood",
    "lake",
]
BERT = {"model_type": "bert", "vocab_size": 60}


@pytest.fixture(scope="module")
def pieces():
    return vocabularies.word_pieces(BERT, [" ".join(WORDS)] * 3, False)


@pytest.fixture(scope="module")
def bytes_with_blanks():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<pad>"], show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", padding_side="left"
    )


def batch(tokenizer, rows, limit):
    reader = Words(column="tokens")
    features = reader.features({"words": rows}, tokenizer, limit)
    listed = [{name: values[i] for name, values in features.items()} for i in range(len(rows))]
    for i, row in enumerate(listed):
        row |= {"id": i, "labels": list(range(len(rows[i])))}
    return Windows(tokenizer, None, "id")(listed), features


@pytest.mark.parametrize("limit", [8, 12, 64])
@pytest.mark.parametrize("made", ["pieces", "bytes_with_blanks"])
def test_every_word_is_decided_at_its_first_piece_in_however_many_windows(made, limit, request):
    tokenizer = request.getfixturevalue(made)
    rows = [WORDS * 3, WORDS[:2], WORDS]
    made_of, features = batch(tokenizer, rows, limit)
    assert all(len(ids) <= limit for row in features["input_ids"] for ids in row)
    assert not any(features["truncated"])
    flat = made_of["input_ids"].flatten()
    for row, words in enumerate(rows):
        places = made_of["first"][row]
        assert (places >= 0).sum() == len(words)
        text = tokenizer(" ".join(words), add_special_tokens=False)
        starts = {text.word_to_tokens(w).start for w in range(len(words))}
        firsts = [id for i, id in enumerate(text["input_ids"]) if i in starts]
        assert flat[places[: len(words)]].tolist() == firsts
    assert made_of["labels"][1].tolist() == [0, 1] + [-100] * (3 * len(WORDS) - 2)


def test_words_of_byte_pairs_are_read_as_in_running_text(bytes_with_blanks):
    _, features = batch(bytes_with_blanks, [WORDS], 64)
    running = bytes_with_blanks(" ".join(WORDS))["input_ids"]
    assert features["input_ids"] == [[running]]


def test_a_word_is_decided_where_most_is_on_both_sides(pieces):
    made_of, features = batch(pieces, [WORDS * 3], 16)
    width = made_of["input_ids"].shape[1]
    positions = made_of["first"][0] % width
    windows = len(features["input_ids"][0])
    inner = made_of["first"][0] // width
    assert windows > 2
    assert positions[(inner > 0) & (inner < windows - 1)].min() >= 2  # not at a window's edge


def test_a_word_that_no_piece_is_made_of_is_an_unknown_one(pieces):
    made_of, _ = batch(pieces, [["ada", "\u200b", "lives"], ["", "town"]], 64)
    assert (made_of["first"] >= 0).sum(1).tolist() == [3, 2]
    assert made_of["input_ids"].flatten()[made_of["first"][0, 1]] == pieces.unk_token_id


def test_texts_and_lists_of_csv_are_words():
    rows = {"tokens": ["Ada isn't in St. Ives.", "['New York', 'it']", ["a"]]}
    read = Words(column="tokens").rows(rows, "train")["words"]
    assert read == [["Ada", "isn't", "in", "St", ".", "Ives", "."], ["New York", "it"], ["a"]]
    with pytest.raises(UserError, match="row 0 holds 3"):
        Words(column="tokens").rows({"tokens": [3]}, "train")


def test_rows_of_no_words_are_read(bytes_with_blanks):
    made_of, _ = batch(bytes_with_blanks, [[], ["a"]], 64)
    assert made_of["first"].tolist() == [[-1], [made_of["input_ids"].numel() - 1]]
    assert isinstance(made_of["attention_mask"], torch.Tensor)
