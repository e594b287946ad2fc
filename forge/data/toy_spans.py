"""The embedded task of spans: the part of a text that answers a question; generated from a seed.

A text has two or three clauses, in any order, each naming a person, a place or a firm in one of
several wordings; its question is of one of these, or of one that the text does not name. All names
are drawn from the same words. So neither the question, nor the text, nor a name, nor a place tells
the answer by itself.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, TypeAlias

from forge.data import sources
from forge.data.toy_tags import WORDS
from forge.errors import UserError

if TYPE_CHECKING:
    import datasets

Filler: TypeAlias = tuple[str, int]  # and where it begins
RELATIONS = (  # a question, and clauses
    ("who was there?", "we met {}", "the nurse saw {}", "they thanked {}"),
    ("where was it?", "it rained in {}", "the road led to {}", "she flew over {}"),
    (
        "which firm was it?",
        "he works for {}",
        "they sold shares of {}",
        "the office is owned by {}",
    ),
)


def spans(
    *,
    train: int,
    validation: int,
    unanswerable: float = 0.15,
    label_noise: float = 0.0,
    seed: int = 0,
) -> dict[str, datasets.Dataset]:
    """Splits with the columns context, question and answers (`text`, `answer_start`), no row twice.

    `unanswerable` is the share of questions without an answer; in `label_noise` of the train rows
    the answer is that of another clause. Raises `UserError` for a split without rows.
    """
    if min(train, validation) < 1:
        raise UserError(f"task.dataset: train={train}, validation={validation}: at least 1 row")
    seen: set[tuple[str, str]] = set()
    splits = {}
    for split, count in {"validation": validation, "train": train}.items():
        source = random.Random(f"spans {split} {seed}")
        noise = random.Random(f"noise {split} {seed}")
        rows: sources.Columns = {"context": [], "question": [], "answers": []}
        while len(rows["context"]) < count:
            context, question, right, other = _row(source, unanswerable)
            if (context, question) in seen:
                continue
            seen.add((context, question))
            answer = other if split == "train" and noise.random() < label_noise else right
            texts, starts = ([answer[0]], [answer[1]]) if answer else ([], [])
            rows["context"].append(context)
            rows["question"].append(question)
            rows["answers"].append({"text": texts, "answer_start": starts})
        splits[split] = sources.dataset(rows)
    return {split: splits[split] for split in ("train", "validation")}


def _row(source: random.Random, unanswerable: float) -> tuple[str, str, Filler | None, Filler]:
    """Context, question, the filler that is asked for (None: the text has none), and another."""
    chosen = source.sample(RELATIONS, len(RELATIONS))
    asked, *others = chosen
    given = others if source.random() < unanswerable else chosen[: source.randint(2, 3)]
    context, places = "", {}
    for clauses in source.sample(given, len(given)):
        name = " ".join(source.sample(WORDS, source.randint(1, 2)))
        before, after = source.choice(clauses[1:]).split("{}")
        context += f"{'. ' if context else ''}{before}"
        places[clauses] = name, len(context)
        context += f"{name}{after}"
    other = next(clauses for clauses in places if clauses != asked)
    return f"{context}.", asked[0], places.get(asked), places[other]
