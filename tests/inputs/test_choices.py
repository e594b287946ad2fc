"""Contexts with options: how rows are read, what is cut, and how batches are padded."""

import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertForMultipleChoice

from forge.errors import UserError
from forge.inputs.choices import Choices
from forge.inputs.input import OPTIONS
from forge.models import vocabularies

ROWS = [
    ("it rained", "why", ["a storm", "the sun was out", "no"]),
    ("a man ran for the last train of the day", "why", ["late", "he was early"]),
]
WORDS = [" ".join((context, question, *options)) for context, question, options in ROWS]


@pytest.fixture(scope="module")
def tokenizer():
    return vocabularies.word_pieces({"vocab_size": 80}, WORDS * 5, True)


def choices(rows=ROWS, **settings):
    kind = Choices(context="context", question="question", options=["options"], **settings)
    columns = dict(zip(kind.columns, map(list, zip(*rows, strict=True)), strict=True))
    return kind, kind.rows(columns, "train")


def options_of(columns, values):
    kind = Choices(context="context", options=columns)
    cells = dict(zip(columns, values, strict=True)) | {"context": ["c"] * len(values[0])}
    return kind.rows(cells, "train")["options"]


def test_lists_columns_keys_and_texts_of_lists_are_read_alike():
    wanted = [["a", "b", "c"], ["d", "e"]]
    assert options_of(["o"], [wanted]) == wanted
    assert options_of(["o"], [["['a', 'b', 'c']", '["d", "e"]']]) == wanted
    named = [[{"text": text, "label": "A"} for text in own] for own in wanted]
    assert options_of(["o"], [named]) == wanted
    keyed = [{"text": each, "label": list("ABC")[: len(each)]} for each in wanted]
    assert options_of(["o"], [keyed]) == wanted
    assert options_of(["x", "y", "z"], [["a", "d"], ["b", "e"], ["c", None]]) == wanted
    assert options_of(["o"], [[["None", "NA"]]]) == [["None", "NA"]]  # words, in a list


@pytest.mark.parametrize(
    ("columns", "values", "reason"),
    [
        (["o"], [[["a", "b"], ["a"]]], "row 1, column o: 1 option"),
        (["o"], [[["a", " "]]], "option 1 is empty"),
        (["x", "y", "z"], [["a"], [""], ["c"]], "option 1 is empty"),
        (["x", "y"], [["a"], [None]], "1 option"),
        (["o"], [["a or b"]], r"task\.options"),
    ],
)
def test_options_that_are_none_are_refused(columns, values, reason):
    with pytest.raises(UserError, match=reason):
        options_of(columns, values)


def test_the_context_alone_is_cut(tokenizer):
    kind, rows = choices()
    whole = kind.features(rows, tokenizer, 100)
    assert whole["truncated"] == [False, False]
    cut = kind.features(rows, tokenizer, 10)
    assert cut["truncated"] == [False, True] and cut["length"][1] == 10
    for full, short in zip(whole["input_ids"][1], cut["input_ids"][1], strict=True):
        end = full.index(tokenizer.sep_token_id)
        question_and_option = full[end:]
        assert short[-len(question_and_option) :] == question_and_option
        assert short[: -len(question_and_option)] == full[: 10 - len(question_and_option)]


def test_a_question_and_an_option_that_leave_no_room_are_refused(tokenizer):
    kind, rows = choices()
    with pytest.raises(UserError, match=r"task\.max_length=6: too short .*storm"):
        kind.features(rows, tokenizer, 6)
    alone = Choices(context=None, question="q", options=["o"])
    columns = alone.rows({"q": ["why a man ran"], "o": [["late", "no"]]}, "train")
    assert alone.features(columns, tokenizer, 20)["truncated"] == [False]
    with pytest.raises(UserError, match="never cut"):
        alone.features(columns, tokenizer, 6)


def test_a_row_is_scored_alike_whatever_others_are_in_its_batch(tokenizer):
    kind, rows = choices()
    encoded = list(Dataset.from_dict(kind.features(rows, tokenizer, 20)))
    collate = kind.collator(tokenizer, None)
    both, alone = collate(encoded), collate(encoded[1:])
    assert both["input_ids"].shape[:2] == (2, 3) and alone["input_ids"].shape[:2] == (1, 2)
    assert both[OPTIONS].tolist() == [[True] * 3, [True, True, False]]
    assert alone[OPTIONS].tolist() == [[True, True, False]]  # as wide as the widest row of the data
    config = BertConfig(vocab_size=80, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = BertForMultipleChoice(config).eval()
    of_both, of_one = (
        model(**{name: part for name, part in batch.items() if name != OPTIONS}).logits
        for batch in (both, alone)
    )
    assert torch.allclose(of_both[1, :2], of_one[0], atol=1e-6)
    assert kind.mask(both).shape == both["input_ids"].flatten(0, 1).shape
    assert kind.mask(both)[-1].sum() == 0  # of what is no option no position is read


def test_what_is_typed_is_a_row():
    kind, _ = choices()
    typed = kind.given([["it rained"], ["why"], ["a storm", "no"]], "run")
    assert typed == {"context": ["it rained"], "question": ["why"], "options": [["a storm", "no"]]}
    with pytest.raises(UserError, match="--option"):
        kind.given([["it rained"]], "run")
    several = Choices(context="c", options=["x", "y", "z"])
    assert several.given([["it rained"], ["a", "b"]], "run")["z"] == [None]


def test_a_context_or_a_question_is_needed():
    with pytest.raises(UserError, match=r"task\.question=null"):
        Choices(context=None, options=["o"])
