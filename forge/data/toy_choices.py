"""The embedded task of choices: which of four sentences follows from a premise; computed, not
downloaded.

The sentences are those of the grammar of `toy_nli` without modifiers. Four premises share four
options, of which each premise entails one and each option follows from one: of all rows with an
option it is right in a quarter, so that neither an option, nor its length, nor its place in a row
tells whether it is right.
"""

from __future__ import annotations

import random
from itertools import product
from typing import TYPE_CHECKING

from forge.data import sources
from forge.data.label_noise import another, with_noise
from forge.data.toy_nli import ENTAILED, NOUNS, VERBS, Sentence, label, mask, scenes, verb_phrase
from forge.errors import UserError

if TYPE_CHECKING:
    import datasets

# Text, the smallest and the largest number of those who are meant that the predicate fits, or (of
# every) does not fit
QUANTIFIERS = (("every", True, (0, 0)), ("some", False, (1, 10**6)), ("no", False, (0, 0)))
OPTIONS = 4
BLOCKS = 60  # of four premises and four options, before they are worded


def choices(
    *, train: int, validation: int, seed: int = 0, label_noise: float = 0.0
) -> dict[str, datasets.Dataset]:
    """Splits with the columns premise, options (four texts) and label (the right one's place).

    Each is a multiple of four rows. `label_noise` is the share of train's rows with a wrong label.
    Raises `UserError` for more rows than the grammar gives.
    """
    if min(train, validation) < OPTIONS:
        raise UserError(f"task.dataset: train={train}, validation={validation}: at least 4 rows")
    source = random.Random(f"choices {seed}")
    worded = list(product(_blocks(source), _scenes()))
    train, validation = train // OPTIONS, validation // OPTIONS
    if train + validation > len(worded):
        raise UserError(
            f"task.dataset: the grammar gives {OPTIONS * len(worded)} rows, not "
            f"{OPTIONS * (train + validation)}; lower train or validation"
        )
    chosen = source.sample(worded, train + validation)
    learnt = _split(chosen[:train], source)
    learnt["label"] = with_noise(learnt["label"], label_noise, another(range(OPTIONS)), seed)
    held_out = _split(chosen[train:], source)
    return {"train": sources.dataset(learnt), "validation": sources.dataset(held_out)}


def _split(
    blocks: list[tuple[list[tuple[str, str]], dict[str, str]]], source: random.Random
) -> sources.Columns:
    rows = []
    for block, scene in blocks:
        pairs = [(p.format_map(scene), h.format_map(scene)) for p, h in block]
        for premise, right in pairs:
            options = source.sample([h for _, h in pairs], OPTIONS)
            rows.append((premise, options, options.index(right)))
    source.shuffle(rows)
    columns = zip(("premise", "options", "label"), zip(*rows, strict=True), strict=True)
    return {name: list(values) for name, values in columns}


def _scenes() -> list[dict[str, str]]:
    """Those that differ in nouns or verbs."""
    words = [f"{slot}{ending}" for slot in (*NOUNS, *VERBS) for ending in ("", "s")]
    distinct = {tuple(scene[word] for word in words): scene for scene in scenes()}
    return list(distinct.values())


def _blocks(source: random.Random) -> list[list[tuple[str, str]]]:
    """Four pairs each, as templates: a premise and what follows from it and from no other's."""
    pool = [
        Sentence(f"{name} {{{noun}}} {verb_phrase(verb, False, False)}", who, counted, number)
        for (name, exceptions, number), noun, verb in product(QUANTIFIERS, NOUNS, VERBS)
        for who in [mask(noun)]
        if 0 < (counted := who & mask(verb, exceptions)) < who
    ]
    follows = {(p.text, h.text) for p in pool for h in pool if label(p, h) == ENTAILED}
    pairs = sorted(pair for pair in follows if pair[0] != pair[1])
    found: dict[tuple[tuple[str, str], ...], None] = {}
    while len(found) < BLOCKS:
        block: list[tuple[str, str]] = []
        for p, h in source.sample(pairs, len(pairs)):
            if all((p, k) not in follows and (q, h) not in follows for q, k in block) and not any(
                p == q or h == k for q, k in block
            ):
                block.append((p, h))
            if len(block) == OPTIONS:
                found.setdefault(tuple(sorted(block)))
                break
    return [list(block) for block in found]
