"""The embedded task of tags: which words name a person, a place or a firm; generated from a seed.

A sentence has one to three clauses, most with a name of one to three words. All names are drawn
from the same words, so that a name says nothing of its type, or of being an entity at all: that is
in the clause.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from forge.data import sources
from forge.data.label_noise import another, with_noise
from forge.errors import UserError

if TYPE_CHECKING:
    import datasets

WORDS = [
    "Ada",
    "Ash",
    "Bell",
    "Birch",
    "Carter",
    "Chester",
    "Dale",
    "Falk",
    "Field",
    "Ford",
    "Grant",
    "Hill",
    "Jordan",
    "Kent",
    "Lake",
    "Lincoln",
    "March",
    "Mills",
    "Paris",
    "Reed",
    "Rose",
    "Sidney",
    "Stone",
    "Wells",
]
CLAUSES = {
    "PER": ("{} laughed aloud", "{} was late", "they thanked {} warmly", "the nurse saw {}"),
    "LOC": ("it rained in {}", "the road to {} was shut", "she flew over {}", "{} is far north"),
    "ORG": ("shares of {} fell", "he works for {}", "{} sold its office", "{} hired a lawyer"),
    "O": ("the word {} was misspelt", "the dog slept", "nobody knew why", "a ship called {} sank"),
}
LONGEST = 3  # words of a name


def tags(
    *, train: int, validation: int, seed: int = 0, label_noise: float = 0.0
) -> dict[str, datasets.Dataset]:
    """Splits with the columns tokens and tags (IOB2, by name), no sentence twice.

    `label_noise` is the share of train's names that are given as of another type. Raises
    `UserError` for a split without rows.
    """
    if min(train, validation) < 1:
        raise UserError(f"task.dataset: train={train}, validation={validation}: at least 1 row")
    seen: set[str] = set()
    splits = {}
    for split, count in {"validation": validation, "train": train}.items():
        source = random.Random(f"tags {split} {seed}")
        rows: sources.Columns = {"tokens": [], "tags": []}
        while len(rows["tokens"]) < count:
            tokens, given = _sentence(source)
            if " ".join(tokens) not in seen:
                seen.add(" ".join(tokens))
                rows["tokens"].append(tokens)
                rows["tags"].append(given)
        noise = label_noise if split == "train" else 0.0
        rows["tags"] = _mistyped(rows["tags"], noise, seed)
        splits[split] = sources.dataset(rows)
    return {split: splits[split] for split in ("train", "validation")}


def _mistyped(sentences: list[list[str]], share: float, seed: int) -> list[list[str]]:
    """Sentences of which that share of the names is of another type, from first to last word."""
    begun = [tag[2:] for tags in sentences for tag in tags if tag[0] == "B"]
    types = iter(with_noise(begun, share, another([kind for kind in CLAUSES if kind != "O"]), seed))
    mistyped, kind = [], ""
    for tags in sentences:
        given = []
        for tag in tags:
            kind = next(types) if tag[0] == "B" else kind
            given.append(tag if tag == "O" else f"{tag[0]}-{kind}")
        mistyped.append(given)
    return mistyped


def _sentence(source: random.Random) -> tuple[list[str], list[str]]:
    tokens: list[str] = []
    given: list[str] = []
    for number in range(source.randint(1, 3)):
        kind = source.choice(list(CLAUSES))
        for word in (["and"] if number else []) + source.choice(CLAUSES[kind]).split():
            name = source.sample(WORDS, source.randint(1, LONGEST)) if word == "{}" else [word]
            tokens += name
            entity = word == "{}" and kind != "O"
            given += [f"{'I' if i else 'B'}-{kind}" if entity else "O" for i in range(len(name))]
    return [*tokens, "."], [*given, "O"]
