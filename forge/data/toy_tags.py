"""The embedded task of tags: which words name a person, a place or a firm; generated from a seed.

A sentence has one to three clauses, most with a name of one to three words. All names are drawn
from the same words, so that a name says nothing of its type, or of being an entity at all: that is
in the clause.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from forge.data import sources
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


def tags(*, train: int, validation: int, seed: int = 0) -> dict[str, datasets.Dataset]:
    """Splits with the columns tokens and tags (IOB2, by name), no sentence twice.

    Raises `UserError` for a split without rows.
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
        splits[split] = sources.dataset(rows)
    return {split: splits[split] for split in ("train", "validation")}


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
