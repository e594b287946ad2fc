"""A question and a passage: its words, in windows where it is long."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from forge.inputs.input import NULLS, SPANS
from forge.inputs.passages import Passages, words
from forge.models import vocabularies

TEXT = "Ada Falk lives in Stonebridge (since 1990s), near the old lake. " * 3
QUESTION = "where does Ada live?"


@pytest.fixture(scope="module")
def pieces():
    bert = {"model_type": "bert", "vocab_size": 70, "type_vocab_size": 2}
    return vocabularies.word_pieces(bert, [TEXT.lower(), QUESTION.lower()], True)


@pytest.fixture(scope="module")
def bytes_with_blanks():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>"], show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([TEXT, QUESTION] * 5, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", padding_side="left"
    )


def batch(tokenizer, contexts, limit, questions=None, **settings):
    reader = Passages(**settings)
    questions = questions or [QUESTION] * len(contexts)
    rows = reader.rows({"context": contexts, "question": questions}, "train")
    features = reader.features(rows, tokenizer, limit)
    listed = [{name: values[i] for name, values in features.items()} for i in range(len(contexts))]
    return reader.collator(tokenizer, None)(listed), features


def test_words_are_where_answers_begin_and_end():
    split = [TEXT[a:b] for a, b in words(TEXT)]
    wanted = "Ada Falk lives in Stonebridge ( since 1990 s ) ,"
    assert split[: len(wanted.split())] == wanted.split()
    assert len(words("\u6771\u4eac\u306b\u4f4f\u3080")) == 5  # no blanks: each letter
    assert words(" \n").shape == (0, 2)


@pytest.mark.parametrize("limit", [20, 32, 256])
@pytest.mark.parametrize("made", ["pieces", "bytes_with_blanks"])
def test_every_word_is_decided_at_its_own_tokens_in_however_many_windows(made, limit, request):
    tokenizer = request.getfixturevalue(made)
    contexts = [TEXT, "Ada lives.", TEXT[:90]]
    made_of, features = batch(tokenizer, contexts, limit)
    assert all(len(ids) <= limit for row in features["input_ids"] for ids in row)
    assert made_of[SPANS].shape == (3, 2, 1 + len(words(TEXT)))
    flat = made_of["input_ids"].flatten()
    for row, context in enumerate(contexts):
        places = made_of[SPANS][row]
        count = len(words(context))
        assert (places[:, 0] == -1).all() and (places[:, count + 1 :] == -1).all()
        whole = tokenizer(context, add_special_tokens=False)
        for i, (a, b) in enumerate(words(context).tolist(), 1):
            first, last = whole.char_to_token(a), whole.char_to_token(b - 1)
            assert flat[places[0, i]] == whole["input_ids"][first]
            assert flat[places[1, i]] == whole["input_ids"][last]
    windows = [len(row) for row in features["input_ids"]]
    assert [(row >= 0).sum() for row in made_of[NULLS]] == windows
    if made == "pieces":
        assert (flat[made_of[NULLS][made_of[NULLS] >= 0]] == tokenizer.cls_token_id).all()


def test_a_word_is_decided_where_most_is_on_both_sides(pieces):
    made_of, features = batch(pieces, [TEXT * 3], 48)
    width = made_of["input_ids"].shape[1]
    window, position = made_of[SPANS][0, 0, 1:] // width, made_of[SPANS][0, 0, 1:] % width
    inner = (window > 0) & (window < len(features["input_ids"][0]) - 1)
    begin = features["input_ids"][0][0].index(pieces.sep_token_id) + 1
    assert position[inner].min() >= begin + 5 and position[inner].max() <= 47 - 6


def test_a_question_is_cut_to_half_a_window_and_a_context_never(pieces):
    made_of, features = batch(pieces, ["Ada lives."], 24, [QUESTION * 9])
    assert features["truncated"] == [True]
    assert (made_of[SPANS][0, :, 1:] >= 0).all()
    assert batch(pieces, ["Ada lives."], 24, ["who?"])[1]["truncated"] == [False]


def test_words_that_a_tokenizer_makes_nothing_of_and_contexts_of_none_are_read(pieces):
    made_of, _ = batch(pieces, ["Ada \u200b lives", " "], 24)
    first = made_of[SPANS][0, 0]
    assert first[2] == first[1] and (first[1:] >= 0).all()
    assert (made_of[SPANS][1] == -1).all() and isinstance(made_of["attention_mask"], torch.Tensor)
