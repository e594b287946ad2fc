"""Entities are those of seqeval: its mode="strict", and its default."""

import random

import pytest

from forge.tasks.entities import chunks, counts_by_type, entities, marked
from forge.tasks.metrics import FUNCTIONS

GOLD = [["B-PER", "I-PER", "O", "B-LOC"]]
LENIENT = [["I-PER", "I-PER", "O", "B-LOC"]]  # the first entity does not begin with B-


def test_strict_and_lenient_differ_where_an_entity_does_not_begin():
    assert FUNCTIONS["entity_f1"].of(GOLD, LENIENT) == pytest.approx(2 / 3)
    assert FUNCTIONS["seqeval_f1"].of(GOLD, LENIENT) == 1
    assert FUNCTIONS["entity_precision"].of(GOLD, LENIENT) == 1
    assert FUNCTIONS["entity_recall"].of(GOLD, LENIENT) == 0.5
    assert FUNCTIONS["word_accuracy"].of(GOLD, LENIENT) == 0.75


@pytest.mark.parametrize(
    ("tags", "ends", "wanted"),
    [
        ("B-X I-X I-Y B-X", False, {("X", 0, 2), ("X", 3, 4)}),
        ("B-X B-X I-X", False, {("X", 0, 1), ("X", 1, 3)}),
        ("S-X B-Y I-Y E-Y", True, {("X", 0, 1), ("Y", 1, 4)}),
        ("U-X B-Y L-Y", True, {("X", 0, 1), ("Y", 1, 3)}),
        ("B-X I-X O E-X", True, set()),  # never ended, never begun
    ],
)
def test_well_formed_entities(tags, ends, wanted):
    assert entities(tags.split(), ends) == wanted


@pytest.mark.parametrize("prefixes", ["BI", "BIES", "BILU"])
def test_as_seqeval_counts_them(prefixes):
    metrics, scheme = pytest.importorskip("seqeval.metrics"), pytest.importorskip("seqeval.scheme")
    kinds = {"BI": scheme.IOB2, "BIES": scheme.IOBES, "BILU": scheme.BILOU}
    tags = ["O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in "XY")]
    source = random.Random(0)
    for _ in range(300):
        true, predicted = (
            [source.choices(tags, k=length) for length in (1, 4, 7)] for _ in range(2)
        )
        if not {tag[0] for row in true for tag in row} & {"E", "L", "S", "U"} and prefixes != "BI":
            continue
        settings = {"mode": "strict", "scheme": kinds[prefixes], "zero_division": 0}
        strict = metrics.f1_score(true, predicted, **settings)
        assert FUNCTIONS["entity_f1"].of(true, predicted) == pytest.approx(strict)
        if prefixes != "BILU":  # which seqeval's default does not know
            default = metrics.f1_score(true, predicted, zero_division=0)
            assert FUNCTIONS["seqeval_f1"].of(true, predicted) == pytest.approx(default)


def test_counts_of_each_type_and_tags_without_entities():
    assert counts_by_type(GOLD, LENIENT) == {"LOC": (1, 1, 1), "PER": (0, 0, 1)}
    assert counts_by_type([["V", "N"]], [["V", "V"]]) == {"N": (0, 0, 1), "V": (1, 2, 1)}


def test_entities_are_marked_in_their_words():
    words = ["Ada", "Falk", "saw", "Rome"]
    assert marked(words, GOLD[0]) == "[PER Ada Falk] saw [LOC Rome]"
    assert marked(["it", "sleeps"], ["O", "VERB"]) == "it sleeps/VERB"
    assert chunks(["O", "I-X"]) == {("X", 1, 2)}
