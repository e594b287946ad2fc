"""The embedded task: its labels are right, and neither sentence tells them by itself."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import cache, reduce
from itertools import combinations_with_replacement, product
from operator import and_

import numpy as np
import pytest

from forge.data.toy_nli import LABELS, nli
from forge.errors import UserError

Row = dict[str, str]
Splits = dict[str, list[Row]]

# A second account of the language, which shares no code with forge.data.toy_nli: it reads English.
PARENT = {
    **{"dog": "animal", "bird": "animal", "poodle": "dog", "beagle": "dog", "parrot": "bird"},
    **{"owl": "bird", "child": "person", "adult": "person", "boy": "child", "girl": "child"},
    **{"man": "adult", "woman": "adult", "run": "move", "walk": "move", "sprint": "run"},
    **{"jog": "run", "stroll": "walk", "sleep": "rest", "sit": "rest", "nap": "sleep"},
    **{"doze": "sleep", "lounge": "sit", "tiny": "small", "huge": "large"},
    **{"joyful": "happy", "gloomy": "sad", "serene": "calm", "furious": "angry"},
}
DIMENSIONS = (
    (
        *("animal", "dog", "bird", "poodle", "beagle", "parrot", "owl"),
        *("person", "child", "adult", "boy", "girl", "man", "woman"),
    ),
    (
        *("move", "run", "walk", "sprint", "jog", "stroll"),
        *("rest", "sleep", "sit", "nap", "doze", "lounge", "nothing"),
    ),
    ("small", "tiny", "large", "huge", "nothing"),
    ("happy", "joyful", "sad", "gloomy", "nothing"),
    ("calm", "serene", "angry", "furious", "nothing"),
)
INDIVIDUALS = list(product(*DIMENSIONS))
IRREGULAR = {"people": "person", "children": "child", "men": "man", "women": "woman"}
WORDS = {word for dimension in DIMENSIONS for word in dimension}
TRUE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "every": lambda inside, outside: outside == 0,
    "not every": lambda inside, outside: outside > 0,
    "some": lambda inside, outside: inside > 0,
    "no": lambda inside, outside: inside == 0,
    "at least two": lambda inside, outside: inside >= 2,
    "at least three": lambda inside, outside: inside >= 3,
    "exactly two": lambda inside, outside: inside == 2,
    "fewer than three": lambda inside, outside: inside < 3,
}
LARGEST_WORLD = 6  # "at least three" of each sentence's individuals, with none in common


def lemma(token: str) -> str:
    word = IRREGULAR.get(token, token)
    return word if word in WORDS else word.removesuffix("s")


EVERYBODY = (1 << len(INDIVIDUALS)) - 1  # a set of individuals: bit i is set for INDIVIDUALS[i]


@cache
def fitting(word: str) -> int:
    def fits(own: str) -> bool:
        return own == word or (own in PARENT and fits(PARENT[own]))

    return sum(1 << i for i, one in enumerate(INDIVIDUALS) if any(fits(own) for own in one))


@cache
def phrase(text: str) -> int:
    """Who fits "small dogs", "are not small" or "does not run"."""
    tokens = [t for t in text.split() if t not in {"is", "are", "do", "does"}]
    if tokens[0] == "not":
        return EVERYBODY & ~phrase(" ".join(tokens[1:]))
    return reduce(and_, (fitting(lemma(token)) for token in tokens))


@cache
def read(text: str) -> tuple[str, int, int]:
    """Quantifier, who fits the subject, who fits the predicate."""
    quantifier = max((q for q in TRUE if text.startswith(q + " ")), key=len)
    predicate = re.search(r"((is|are|do|does) (not )?)?\w+$", text)
    assert predicate
    restrictor, _, clause = text[len(quantifier) : predicate.start()].partition(" that ")
    subject = phrase(restrictor) & (phrase(clause) if clause else phrase(restrictor))
    return quantifier, subject, phrase(predicate.group())


@cache
def worlds(kinds: int) -> np.ndarray:
    """How many individuals of each kind: all worlds up to the largest, one a row."""
    sizes = range(LARGEST_WORLD + 1)
    chosen = [c for n in sizes for c in combinations_with_replacement(range(kinds), n)]
    return np.array([[world.count(kind) for kind in range(kinds)] for world in chosen])


@cache
def checked(first: str, second: str, kinds: tuple[tuple[bool, ...], ...]) -> str:
    """The label by looking at every world; a kind says which of the four sets it lies in."""
    columns = np.array(kinds, dtype=bool).T

    def count(*sets: np.ndarray) -> np.ndarray:
        return worlds(len(kinds)) @ np.logical_and.reduce(sets)

    a, b, c, d = columns
    inhabited = (count(a) > 0) & (count(c) > 0)
    premise = TRUE[first](count(a, b), count(a, ~b)) & inhabited
    hypothesis = TRUE[second](count(c, d), count(c, ~d))[premise]
    assert len(hypothesis), "the premise denies the hypothesis's presupposition"
    return LABELS[0] if hypothesis.all() else LABELS[1] if hypothesis.any() else LABELS[2]


def model_check(premise: str, hypothesis: str) -> str:
    (first, a, b), (second, c, d) = read(premise), read(hypothesis)
    regions = {(False, False, False, False): a | c}  # those spoken of, divided by each of the sets
    for number, members in enumerate((a, b, c, d)):
        divided = {}
        for kind, who in regions.items():
            divided[kind] = who & ~members
            divided[(*kind[:number], True, *kind[number + 1 :])] = who & members
        regions = divided
    return checked(first, second, tuple(sorted(kind for kind, who in regions.items() if who)))


def rows(**asked: int) -> Splits:
    return {name: split.to_list() for name, split in nli(**asked).items()}


@pytest.fixture(scope="module")
def splits() -> Splits:
    return rows()


def pairs(split: list[Row]) -> set[tuple[str, str]]:
    return {(row["premise"], row["hypothesis"]) for row in split}


def wrong(split: list[Row]) -> list[Row]:
    return [r for r in split if model_check(r["premise"], r["hypothesis"]) != r["label"]]


@pytest.mark.parametrize(
    ("premise", "hypothesis", "label"),
    [
        ("every animal runs", "some small dog moves", "entailment"),
        ("every dog runs", "every animal moves", "neutral"),
        ("every dog runs", "no animal that is small moves", "neutral"),
        ("exactly two men are sad", "fewer than three adults are sad", "neutral"),
        ("at least three men are sad", "fewer than three people do not rest", "neutral"),
        ("no child that rests is tiny", "not every girl that naps is small", "neutral"),
        ("no child that rests is small", "not every girl that naps is tiny", "entailment"),
    ],
)
def test_the_model_checker_itself(premise: str, hypothesis: str, label: str) -> None:
    assert model_check(premise, hypothesis) == label


def test_labels_agree_with_a_model_checker_that_reads_the_english(splits: Splits) -> None:
    assert wrong(random.Random(0).sample(splits["train"], 400)) == []


@pytest.mark.slow
def test_every_label_agrees_with_the_model_checker(splits: Splits) -> None:
    assert wrong(splits["train"] + splits["validation"] + rows(seed=1)["train"]) == []


def test_sizes_columns_and_labels(splits: Splits) -> None:
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 19_998,
        "validation": 1_998,
    }
    assert set(splits["train"][0]) == {"premise", "hypothesis", "label"}
    assert {row["label"] for row in splits["validation"]} == set(LABELS)
    assert [len(s) for s in rows(train=5, validation=0).values()] == [3, 0]


@pytest.mark.parametrize("name", ["train", "validation"])
def test_every_hypothesis_has_every_label_equally_often(splits: Splits, name: str) -> None:
    counts = Counter((row["hypothesis"], row["label"]) for row in splits[name])
    for hypothesis in {row["hypothesis"] for row in splits[name]}:
        assert len({counts[hypothesis, label] for label in LABELS}) == 1


def test_premises_too_have_every_label_equally_often_but_where_a_block_is_cut(
    splits: Splits,
) -> None:
    counts = Counter((row["premise"], row["label"]) for row in splits["train"])
    premises = {row["premise"] for row in splits["train"]}
    uneven = [p for p in premises if len({counts[p, label] for label in LABELS}) > 1]
    assert len(uneven) <= 8


def test_all_quantifiers_occur_on_both_sides(splits: Splits) -> None:
    for side in ("premise", "hypothesis"):
        assert {read(row[side])[0] for row in splits["validation"]} == set(TRUE)


def test_sentences_are_short(splits: Splits) -> None:
    texts = [text for row in splits["train"] for text in (row["premise"], row["hypothesis"])]
    assert {len(text.split()) for text in texts} <= set(range(3, 15))


def bag_of_words(splits: Splits, text: Callable[[Row], str]) -> float:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectors = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+")
    train = vectors.fit_transform(map(text, splits["train"]))
    model = LogisticRegression(max_iter=500).fit(train, [r["label"] for r in splits["train"]])
    held_out = vectors.transform(map(text, splits["validation"]))
    return float(model.score(held_out, [r["label"] for r in splits["validation"]]))


@pytest.mark.parametrize("side", ["premise", "hypothesis"])
def test_one_sentence_does_not_tell_the_label(splits: Splits, side: str) -> None:
    assert bag_of_words(splits, lambda row: row[side]) < 0.40


def test_the_words_of_both_sentences_do_not_tell_the_label(splits: Splits) -> None:
    def words(row: Row) -> str:
        return " ".join(
            f"{side[0]}_{w}" for side in ("premise", "hypothesis") for w in row[side].split()
        )

    assert bag_of_words(splits, words) < 0.70


def test_no_pair_comes_twice(splits: Splits) -> None:
    train, validation = pairs(splits["train"]), pairs(splits["validation"])
    assert len(train | validation) == len(splits["train"]) + len(splits["validation"])


def test_more_than_the_grammar_gives_is_refused_with_the_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("forge.data.toy_nli.SENTENCES", 100)
    with pytest.raises(UserError, match=r"gives \d+ pairs, not 999999 \+ 1998") as refusal:
        nli(train=1_000_000)
    number = int(str(refusal.value).split()[3])
    assert sum(len(split) for split in rows(train=number, validation=0).values()) == number


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_fifty_thousand_pairs_can_be_had(seed: int) -> None:
    assert len(nli(train=48_000, seed=seed)["train"]) == 48_000


def test_same_seed_same_rows_in_under_three_seconds(splits: Splits) -> None:
    start = time.process_time()
    again = rows()
    assert time.process_time() - start < 3
    assert again == splits


def test_other_seed_other_rows(splits: Splits) -> None:
    other = pairs(rows(train=3_000, seed=1)["train"])
    assert len(other & pairs(splits["train"])) < 1_000


def test_rows_do_not_depend_on_the_hash_seed() -> None:
    code = (
        "import random, hashlib; from itertools import islice\n"
        "from forge.data.toy_nli import pairs\n"
        "rows = list(islice(pairs(random.Random(3)), 3000))\n"
        "print(hashlib.sha256(repr(rows).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(digests) == 1


@pytest.mark.slow
def test_a_small_transformer_that_reads_both_sentences_learns_the_task(splits: Splits) -> None:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    number: dict[str, int] = {"[PAD]": 0}

    def encode(row: Row) -> torch.Tensor:
        text = f"[CLS] {row['premise']} [SEP] {row['hypothesis']} [SEP]"
        return torch.tensor([number.setdefault(word, len(number)) for word in text.split()])

    def encoded(rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.nn.utils.rnn.pad_sequence([encode(row) for row in rows], batch_first=True)
        return ids, torch.tensor([LABELS.index(row["label"]) for row in rows])

    ids, labels = encoded(splits["train"])
    held_out, answers = encoded(splits["validation"])
    config = BertConfig(
        vocab_size=len(number),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=256,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        for batch in torch.randperm(len(ids)).split(64):
            x = ids[batch]
            x = x[:, : (x > 0).sum(1).max()]
            loss = model(input_ids=x, attention_mask=(x > 0).long(), labels=labels[batch]).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=held_out, attention_mask=(held_out > 0).long()).logits
    assert (logits.argmax(-1) == answers).float().mean() > 0.60
