"""The embedded task of several labels: which topics a note is about, computed, not downloaded.

A note has one to four short sentences. Each is about one topic, or denies being about one, or is
about none; its topics are those that some sentence is about. A denied topic's words stand in the
note all the same, so that a topic's words alone do not tell it.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from forge.data import sources
from forge.data.label_noise import another, with_noise
from forge.errors import UserError

if TYPE_CHECKING:
    import datasets

TOPICS = {
    "food": "bread soup cheese dinner",
    "health": "doctor fever clinic medicine",
    "money": "bank loan salary tax",
    "music": "song guitar concert melody",
    "sport": "match goal team race",
    "travel": "train ticket hotel airport",
}
NAMES = tuple(TOPICS)
ABOUT = ("we spoke of the {}", "the {} came up", "she asked about the {}", "a word on the {}")
DENIED = ("nothing about the {}", "we left out the {}", "not a word on the {}")
OTHER = ("it was late", "the day was grey", "he waited for a while", "nobody was in a hurry")
SENTENCES = (1, 4)  # in a note
KINDS = ("about", "denied", "other")
OFTEN = (5, 3, 2)  # of each kind


def topics(
    *, train: int, validation: int, seed: int = 0, label_noise: float = 0.0
) -> dict[str, datasets.Dataset]:
    """Splits with the columns text and labels (a list of names), no text twice.

    `label_noise` is the share of train's rows whose labels are another row's. Raises `UserError`
    for a split without rows.
    """
    if min(train, validation) < 1:
        raise UserError(f"task.dataset: train={train}, validation={validation}: at least 1 row")
    seen: set[str] = set()
    counts = {"validation": validation, "train": train}
    drawn = {
        split: _split(count, random.Random(f"topics {split} {seed}"), seen)
        for split, count in counts.items()
    }
    learnt = drawn["train"]
    learnt["labels"] = with_noise(learnt["labels"], label_noise, another(learnt["labels"]), seed)
    return {split: sources.dataset(drawn[split]) for split in ("train", "validation")}


def _split(count: int, source: random.Random, seen: set[str]) -> sources.Columns:
    """Rows that `seen` does not hold yet; they are added to it."""
    rows: sources.Columns = {"text": [], "labels": []}
    while len(rows["text"]) < count:
        text, labels = _note(source)
        if text not in seen:
            seen.add(text)
            rows["text"].append(text)
            rows["labels"].append(labels)
    return rows


def _note(source: random.Random) -> tuple[str, list[str]]:
    about, sentences = set(), []
    denied = set(source.sample(NAMES, 3))  # what one sentence denies no other is about
    for _ in range(source.randint(*SENTENCES)):
        kind = source.choices(KINDS, OFTEN)[0]
        topic = source.choice([name for name in NAMES if (name in denied) == (kind == "denied")])
        form = source.choice({"about": ABOUT, "denied": DENIED, "other": OTHER}[kind])
        sentences.append(form.format(source.choice(TOPICS[topic].split())))
        about |= {topic} if kind == "about" else set()
    return ". ".join(sentences) + ".", sorted(about)
